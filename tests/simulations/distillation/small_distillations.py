"""Small distillations and federated runs on scikit-learn's digits, for tests."""

import csv
from pathlib import Path

from omegaconf import DictConfig

from simulations.config import compose
from simulations.distillation.folder import read_rows
from simulations.distillation.runner import compose_distillation
from simulations.federation.runner import run_federation
from tests.small_runs import ROOT

METHODS = sorted(path.stem for path in (ROOT / "conf" / "distiller").glob("*.yaml"))
"""The options of ``conf/distiller``."""

SMALL = (
    "teacher=resnet14", "teacher.widths=[6,8,10]", "student=resnet8", "student.widths=[5,6,7]", "epochs=2", "steps_per_epoch=3",
    "batch_size=16", "progress=false", "export=false", "num_train_images=200",
)  # fmt: skip
"""Overrides of a small distillation."""

SMALL_METHODS = {
    "dpk": ("distiller.grid=2", "distiller.width=8", "distiller.heads=2", "distiller.depth=1"),
    "information_flow": ("distiller.teaching=[]",),
}
"""Overrides that make single methods small."""

SMALL_FEDERATION = ("engine=local", "num_clients=4", "clients_per_round=2", "local_steps=3", "clients_per_vmap=1", "progress=false")
"""Overrides of a small federated run."""

SYNTHETIC = (
    "image_source=synthetic", "image_source.generator.width=4", "image_source.steps=2", "image_source.batch_size=16",
)  # fmt: skip
"""Overrides of a small data-free distillation."""


def small_distillation(method: str, output: Path, *overrides: str) -> DictConfig:
    """The configuration of a small distillation by one method."""
    return compose_distillation([*SMALL, f"output={output}", f"distiller={method}", *SMALL_METHODS.get(method, ()), *overrides])


def small_federation(output: Path, *overrides: str) -> Path:
    """The folder of a finished small federated run."""
    return run_federation(compose([*SMALL_FEDERATION, "rounds=2", f"output={output}", *overrides]))


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, values as text."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def network_rows(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of ``models.csv`` by network."""
    return {row["network"]: row for row in read_csv(folder / "models.csv")}


def final_accuracy(folder: Path) -> float:
    """The student's test accuracy after the last epoch."""
    return float(read_rows(folder)[-1]["test_accuracy"])


def rows_without_times(folder: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv`` without the columns that differ between equal trainings."""
    times = ("training_seconds", "evaluation_seconds")
    return [{key: value for key, value in row.items() if key not in times} for row in read_rows(folder)]
