"""Small runs of the Python API, made once for all tests of a session."""

from pathlib import Path
from typing import Any

import pytest

import fedkd

SMALL: dict[str, Any] = {
    "engine": "local", "num_clients": 6, "clients_per_round": 4, "local_steps": 3, "partition__alpha": 1.0, "clients_per_vmap": 1,
    "progress": False, "rounds": 3,
}  # fmt: skip
"""Keys of a small federation."""

WORDS = [
    "engine=local", "num_clients=6", "clients_per_round=4", "local_steps=3", "partition.alpha=1.0", "clients_per_vmap=1", "progress=false",
    "rounds=3",
]  # fmt: skip
"""The same as words of the command."""

STUDENT: dict[str, Any] = {
    "student": "resnet8", "epochs": 2, "num_train_images": 100, "batch_size": 50, "export": False, "progress": False,
}  # fmt: skip
"""Keys of a small distillation."""


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the shared runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def runs(output: Path) -> fedkd.Runs:
    """FedAvg and FedGen, each with two seeds."""
    fedgen = ["strategy=fedgen", "strategy.generator_steps=3", "generator_diagnostics_every=3"]
    return fedkd.run(strategy="fedavg", seed=[0, 1], output=str(output), **SMALL) + fedkd.run(
        *fedgen, seed=[0, 1], output=str(output), **SMALL
    )


@pytest.fixture(scope="session")
def student(runs: fedkd.Runs, output: Path) -> fedkd.Run:
    """A student of the first run."""
    (found,) = fedkd.distill(runs[0], "distiller=kd", output=str(output), **STUDENT)
    return found
