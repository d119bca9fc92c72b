"""Golden runs: tiny runs of every strategy whose results no refactoring may change.

The runs use float64. ``tests/golden/<strategy>.json`` holds norms of every part of the state. A test compares them to 1e-10, so that they
hold across processors and versions of torch. After an intended change of results, rewrite the files of all strategies, or of those
named, and check ``git diff tests/golden``::

    python -m tests.golden [strategy ...]

To compare two versions of the code on one machine byte for byte::

    python -m tests.golden --exact FILE

This hashes every tensor of the final state and of the clients' states, and the values of ``metrics.csv`` and ``clients.csv`` without
timing columns. If FILE does not exist, the hashes are written to it. Otherwise they are compared with it, and the exit code is 1 if one
differs.
"""

import csv
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch

from fedkd.checkpoint import read_checkpoint
from fedkd.types import flatten
from simulations.config import compose
from simulations.federation.runner import run_federation
from tests.small_runs import ROOT, SMALL, STRATEGIES, small_run, strategy_overrides

FOLDER = ROOT / "tests" / "golden"
COMMAND = "python -m tests.golden"
TINY = ("num_clients=4", "clients_per_round=2", "local_steps=3", "precision=float64", "seed=1")


def norms(name: str) -> dict[str, float]:
    """Norms of a golden run, and its training losses.

    Each part of the final state, and all client states together, have a norm, and a norm that depends on the place of each entry.
    """
    ran = small_run(f"strategy={name}", *strategy_overrides(name), *TINY, "rounds=2")
    parts = dict(ran.state)
    parts["memories"] = {
        f"{client:02d}/{part}/{key}": value
        for client, state in ran.client_states.items()
        for part, tensors in state.items()
        for key, value in tensors.items()
    }
    values = {}
    for part, tensors in sorted(parts.items()):
        flat = torch.cat([tensors[key].double().flatten() for key in sorted(tensors)])
        values[f"{part}: norm"] = flat.norm().item()
        values[f"{part}: norm by place"] = (flat * torch.linspace(0, 1, len(flat), dtype=torch.float64)).norm().item()
    return values | {f"train_loss after {number}": metrics["train_loss"] for number, metrics in ran.metrics.items()}


def read(name: str) -> dict[str, float]:
    """The values on disk."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def exact(name: str) -> dict[str, str]:
    """SHA-256 of all tensors of a run's checkpoint, and of the values in its CSV files, without names of columns and timing columns."""
    with tempfile.TemporaryDirectory() as output:
        options = ("rounds=3", "evaluation.every=1", f"output={output}", "progress=false")
        folder = run_federation(compose([*SMALL, f"strategy={name}", *strategy_overrides(name), *TINY, *options]))
        tensors = hashlib.sha256()
        last = read_checkpoint(folder)
        owners = {"server": last.state, **{str(client): state for client, state in last.client_states.items()}}
        values = {f"{owner}|{name}": value for owner, state in owners.items() for name, value in flatten(state).items()}
        for key, value in sorted(values.items()):
            tensors.update(f"{key} {value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        return {"checkpoint": tensors.hexdigest()} | {file: values_hash(folder / file) for file in ("metrics.csv", "clients.csv")}


def values_hash(path: Path) -> str:
    """SHA-256 of the rows of a CSV file without its timing columns."""
    header, *rows = csv.reader(path.read_text().splitlines())
    is_timing = [name.startswith("seconds_") or (name.endswith("_seconds") and name != "simulated_seconds") for name in header]
    values = [[cell for cell, skipped in zip(row, is_timing, strict=True) if not skipped] for row in rows]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def compare(path: Path) -> int:
    """Write the hashes of all golden runs to ``path``, or compare them with those in ``path``. The result is the number of differences."""
    hashes = {name: exact(name) for name in STRATEGIES}
    if not path.exists():
        path.write_text(json.dumps(hashes, indent=1) + "\n")
        print(f"wrote {path}")
        return 0
    expected = json.loads(path.read_text())
    differing = [f"{name}: {file}" for name in sorted({*hashes, *expected}) for file in ("checkpoint", "metrics.csv", "clients.csv")
                 if hashes.get(name, {}).get(file) != expected.get(name, {}).get(file)]  # fmt: skip
    print(
        "\n".join(f"differs: {name}" for name in differing)
        or f"{len(hashes)} golden runs equal byte for byte: checkpoint, metrics.csv, clients.csv"
    )
    return len(differing)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--exact"]:
        sys.exit(int(compare(Path(sys.argv[2])) > 0))
    for strategy in sys.argv[1:] or STRATEGIES:
        (FOLDER / f"{strategy}.json").write_text(json.dumps(norms(strategy), indent=1) + "\n")
        print(f"wrote tests/golden/{strategy}.json")
