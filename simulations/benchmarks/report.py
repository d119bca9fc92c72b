"""What a report of many run folders takes: ``<key> <value>``, one line a figure.

``python -m simulations.benchmarks.report [folders=1000] [rounds=100]`` makes run folders of ten strategies by ten alphas by seeds from one
small run that is really made (its accuracies moved by a little, by folder), and prints ``seconds``, the wall time of
``python -m simulations.report`` with all tables and figures as a process of its own; ``seconds_tables`` without figures; and
``times_reading``, the first over the time in which pandas reads the same files of metrics and clients alone. Lines that begin with ``#``
say what was done.
"""

import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from simulations.benchmarks.engine import timed
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.process import configure_process

STRATEGIES = ("fedavg", "fedgen", "fedprox", "fedensemble", "feddistill", "scaffold", "moon", "fedntd", "fedgkd", "fedgen_paper")

ALPHAS = tuple(tenths / 10 for tenths in range(1, 11))


def folders(home: Path, number: int, rounds: int) -> None:
    """``number`` run folders in ``home``."""
    small = ["data=digits", "engine=local", "local_steps=1", f"rounds={rounds}", "progress=false", f"output={home.parent / 'first'}"]
    first = run_federation(compose(small))
    tables = {name: pd.read_csv(first / f"{name}.csv") for name in ("metrics", "clients")}
    for place in range(number):
        seed, rest = divmod(place, len(STRATEGIES) * len(ALPHAS))
        strategy, alpha = STRATEGIES[rest % len(STRATEGIES)], ALPHAS[rest // len(STRATEGIES)]
        folder = home / f"{strategy}-{alpha}-{seed}"
        shutil.copytree(first, folder)
        config = configuration(strategy, alpha, tuple(small))
        config.seed = seed
        OmegaConf.save(config, folder / "config.yaml", resolve=True)  # as runs write it
        moved = np.random.default_rng(place).uniform(0.8, 1.0)
        for name, table in tables.items():
            accuracies = [column for column in table if column.startswith(("global_test_accuracy", "local_test_accuracy"))]
            table.assign(**{column: table[column] * moved for column in accuracies}).to_csv(folder / f"{name}.csv", index=False)


@cache
def configuration(strategy: str, alpha: float, small: tuple[str, ...]) -> DictConfig:
    """The configuration of a strategy at an alpha."""
    return compose([*small, f"strategy={strategy}", f"partition.alpha={alpha}"])


def reported(home: Path, *words: str) -> float:
    """Wall time of the report as a user calls it."""
    command = [sys.executable, "-m", "simulations.report", str(home), "--output", str(home.parent / "report"), *words]
    return timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def main(argv: list[str]) -> None:
    """The command."""
    asked = dict(word.split("=", 1) for word in argv)
    number, rounds = int(asked.get("folders", 1000)), int(asked.get("rounds", 100))
    configure_process()
    with tempfile.TemporaryDirectory() as where:
        home = Path(where) / "runs"
        folders(home, number, rounds)
        files = [path for name in ("metrics", "clients") for path in home.glob(f"*/{name}.csv")]
        reading = timed(lambda: [pd.read_csv(path) for path in files])
        tables, whole = reported(home, "--no-figures"), reported(home)
        drawn = len(list((home.parent / "report").glob("*.png")))
        print(f"# {number} folders of {rounds} rounds, {drawn} figures; reading {len(files)} files took {reading:.2f} s")
        print(f"seconds {whole:.1f}\nseconds_tables {tables:.1f}\ntimes_reading {whole / reading:.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
