"""A small sweep of an experiment, which several tests reproduce."""

import csv
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from scipy import stats

from simulations.experiments import reproduce

TINY = ["data=digits", "num_clients=6", "clients_per_round=3", "local_steps=2", "batch_size=16", "partition.min_size=2", "rounds=6"]


SWEEP = ["experiment=fedgen_table1_mnist", "strategies=FedAvg,FedGen", "settings=alpha 1", "seeds=0,1", "jobs=2", "quiet=true", *TINY]


def command(where: Path, *words: str) -> int:
    """The command in this process; the runs in others."""
    return reproduce.reproduce(reproduce.parse_arguments([*SWEEP, f"output={where}", *words]))


def folders(where: Path) -> dict[tuple[str, int], Path]:
    """Run folders by strategy and seed."""
    found = {}
    for path in where.glob("fedgen_table1_mnist/*/config.yaml"):
        config = OmegaConf.load(path)
        found[config.choices.strategy, config.seed] = path.parent
    return found


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def by_hand(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval."""
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
