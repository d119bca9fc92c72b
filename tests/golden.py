"""Golden runs: tiny runs of every strategy whose results no refactoring may change.

The runs use float64. ``tests/golden/<strategy>.json`` holds norms of every part of the state, compared to 1e-10, so that they hold across
processors and versions of torch. Where a change is meant, rewrite all files, or those of the strategies named, and look at
``git diff tests/golden``::

    python -m tests.golden [strategy ...]

To compare two versions of the code on one machine byte for byte::

    python -m tests.golden --exact FILE

This hashes every tensor of the final state and of the clients' states, and the values of ``metrics.csv`` and ``clients.csv`` without
timing columns. It writes FILE if there is none, and otherwise compares with it and exits with 1 where a hash differs.
"""

import csv
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from simulations.config import compose
from simulations.federation.runner import run_federation
from tests.small_runs import ROOT, SMALL, STRATEGIES, small_run, strategy_overrides

FOLDER = ROOT / "tests" / "golden"
COMMAND = "python -m tests.golden"
TINY = ("num_clients=4", "clients_per_round=2", "local_steps=3", "precision=float64", "seed=1")


def figures(name: str) -> dict[str, float]:
    """Of every part of the final state and of all memories: its norm, and a norm in which each entry's place counts."""
    ran = small_run(f"strategy={name}", *strategy_overrides(name), *TINY, "rounds=2")
    parts = dict(ran.state)
    parts["memories"] = {
        f"{k:02d}/{part}/{key}": v for k, m in ran.client_states.items() for part, ts in m.items() for key, v in ts.items()
    }
    found = {}
    for part, tensors in sorted(parts.items()):
        flat = torch.cat([tensors[key].double().flatten() for key in sorted(tensors)])
        found[f"{part}: norm"] = flat.norm().item()
        found[f"{part}: norm by place"] = (flat * torch.linspace(0, 1, len(flat), dtype=torch.float64)).norm().item()
    return found | {f"train_loss after {number}": metrics["train_loss"] for number, metrics in ran.metrics.items()}


def read(name: str) -> dict[str, float]:
    """The figures on disk."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def exact(name: str) -> dict[str, str]:
    """SHA-256 of all tensors of a run's checkpoint, and of the values in its CSV files, names of columns and timing columns left out."""
    with tempfile.TemporaryDirectory() as output:
        overrides = [
            *SMALL,
            f"strategy={name}",
            *strategy_overrides(name),
            *TINY,
            "rounds=3",
            "evaluation.every=1",
            f"output={output}",
            "progress=false",
        ]
        folder = run_federation(compose(overrides))
        tensors = hashlib.sha256()
        for key, value in sorted(load_file(folder / "checkpoint.safetensors").items()):
            tensors.update(f"{key} {value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        return {"checkpoint": tensors.hexdigest()} | {file: values_hash(folder / file) for file in ("metrics.csv", "clients.csv")}


def values_hash(path: Path) -> str:
    """SHA-256 of the rows of a CSV file without its timing columns."""
    header, *rows = csv.reader(path.read_text().splitlines())
    timed = [name.startswith("seconds_") or (name.endswith("_seconds") and name != "simulated_seconds") for name in header]
    kept = [[cell for cell, left_out in zip(row, timed, strict=True) if not left_out] for row in rows]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def compare(path: Path) -> int:
    """Write the hashes of all golden runs to ``path``, or compare with those that it holds: the number of strategies that differ."""
    found = {name: exact(name) for name in STRATEGIES}
    if not path.exists():
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {path}")
        return 0
    expected = json.loads(path.read_text())
    differing = [f"{name}: {file}" for name in sorted({*found, *expected}) for file in ("checkpoint", "metrics.csv", "clients.csv")
                 if found.get(name, {}).get(file) != expected.get(name, {}).get(file)]  # fmt: skip
    print(
        "\n".join(f"differs: {one}" for one in differing)
        or f"{len(found)} golden runs equal byte for byte: checkpoint, metrics.csv, clients.csv"
    )
    return len(differing)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--exact"]:
        sys.exit(int(compare(Path(sys.argv[2])) > 0))
    for strategy in sys.argv[1:] or STRATEGIES:
        (FOLDER / f"{strategy}.json").write_text(json.dumps(figures(strategy), indent=1) + "\n")
        print(f"wrote tests/golden/{strategy}.json")
