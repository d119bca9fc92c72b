"""Run folders made by hand, for tests that read no tensor."""

import json
import os
from pathlib import Path

import yaml

PARTITION = {"_target_": "fedkd.partition.dirichlet.Dirichlet", "alpha": 0.1, "min_size": 2}


def make_run(folder: Path, *, age: float = 60.0, done: int = 2, rounds: int = 2, accuracy: float = 0.5, **changes: object) -> Path:
    """A folder with the files that ``fedkd list`` reads.

    Args:
        folder: to be made.
        age: seconds since its files were written.
        done: rounds of its checkpoint; 0 is no checkpoint.
        rounds: of its configuration.
        accuracy: in its last row.
        changes: values of its configuration, by key.
    """
    folder.mkdir(parents=True)
    choices = {"strategy": changes.pop("strategy", "fedavg"), "data": "digits", "partition": "dirichlet", "shift": "none"}
    config = {"name": "digits", "seed": 0, "rounds": rounds, "partition": PARTITION, "strategy": {"_target_": "x.Y"}}
    config |= {"choices": choices, **changes}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "environment.json").write_text("{}")
    rows = [f"{r},{accuracy / 2},{accuracy}" for r in range(1, done + 1)]
    (folder / "metrics.csv").write_text("\n".join(["round,global_test_accuracy,local_test_accuracy", *rows]) + "\n")
    if done:
        (folder / "checkpoint.json").write_text(json.dumps({"round": done, "finished": done == rounds}))
    for path in folder.iterdir():
        moment = path.stat().st_mtime - age
        os.utime(path, (moment, moment))
    return folder
