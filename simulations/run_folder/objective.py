"""The objective of a run: the number that it returns to a sweeper, such as Optuna's."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from fedkd.errors import ConfigError, nearest

VALUES = {"_final": 1, "_last10": 10}
"""How many measured values the mean of an objective covers, by the end of its name."""


def check_objective(name: str | None, columns: Sequence[str]) -> None:
    """Check the key ``objective``.

    Args:
        name: its value.
        columns: of ``metrics.csv``.

    Raises:
        ConfigError: it is neither null nor a column with one of :data:`VALUES` behind it.
    """
    known = [f"{column}{end}" for column in columns for end in VALUES]
    if name is not None and name not in known:
        rule = "must be null, or a column of metrics.csv with _final (last value) or _last10 (mean of the last ten values) behind it"
        raise ConfigError(f"objective {rule}, got {name!r}{nearest(name, known)}")


def read_objective(folder: Path, name: str) -> float:
    """The objective of a finished run: the mean of the last measured values of a column. NaN if the run has measured none.

    The best round is no objective, as it would be selected on the examples that measure it.

    Args:
        folder: the run folder.
        name: a column of ``metrics.csv`` with one of :data:`VALUES` behind it.
    """
    column, _, end = name.rpartition("_")
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        values = [float(row[column]) for row in csv.DictReader(file) if row.get(column)][-VALUES[f"_{end}"] :]
    return sum(values) / len(values) if values else math.nan


def worst_objective(name: str) -> float:
    """The objective of a run that diverged: 0 for an accuracy, infinity for any other column."""
    return 0.0 if "accuracy" in name else math.inf
