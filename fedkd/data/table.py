"""Tables of numbers: a file of the user's, and two tables that scikit-learn ships."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from fedkd.data.cache import content_digest
from fedkd.data.rows import check_split, drawn_rows, listed, read_parts
from fedkd.errors import ConfigError, require
from fedkd.types import Examples, Task

TABLES = {"breast_cancer": "breast_cancer.csv", "wine": "wine_data.csv"}
"""Tables of scikit-learn, and their files."""


def task_of_table(
    name: str,
    values: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    names: tuple[str, ...],
    groups: Sequence[np.ndarray] | None = None,
    group_names: tuple[str, ...] = (),
) -> tuple[Task, Examples, Examples]:
    """A table as a task. Columns are normalized by the mean and the standard deviation of the training rows.

    Args:
        name: name of the task.
        values: the training rows and the test rows [N, features].
        labels: their classes [N], int64.
        names: the name of each class.
        groups: their groups [N], int64; None: no groups.
        group_names: the name of each group.
    """
    train = values[0].astype(np.float64)
    deviations = train.std(0)
    mean, std = tuple(train.mean(0).tolist()), tuple(np.where(deviations > 0, deviations, 1.0).tolist())
    arrays = {f"{part}_{kind}": data[i] for i, part in enumerate(("train", "test")) for kind, data in (("x", values), ("y", labels))}
    digest = content_digest({**arrays, **({} if groups is None else {"groups": np.concatenate(groups)})})
    parts = [
        Examples(
            torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y), 1.0, mean, std, digest,
            groups=None if groups is None else torch.from_numpy(groups[part]), group_names=group_names,
        )
        for part, (x, y) in enumerate(zip(values, labels))
    ]  # fmt: skip
    return Task(name, (train.shape[1],), len(names), names, mean, std, input="table"), parts[0], parts[1]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A file of rows: one column of labels, and columns of numbers. All columns but those of labels and groups are features.

    Columns are normalized by the mean and the standard deviation of the training rows. A column of one value stays at 0.

    Args:
        root: a CSV file (or tsv, jsonl, parquet) with the names of the columns, or a folder with ``train.csv`` and perhaps ``test.csv``.
        label_column: the column of labels: whole numbers, words or truth values.
        group_column: the column of groups, such as hospitals, for ``partition=by_group``; null: no groups.
        left_out_columns: columns that are no features, such as numbers of patients.
        missing: what happens to values that are missing: ``refuse``, or ``mean``: they become the mean of the training rows.
        test_fraction: fraction of the rows of each class that are test rows, rounded down, where there is no test file.
        split_seed: seed of this split, which is the same for all runs.

    Raises:
        ConfigError: a value is out of its range; on calling if a file or column is missing or damaged, or a feature is no number.
    """

    root: str
    label_column: str
    group_column: str | None
    left_out_columns: Sequence[str]
    missing: Literal["refuse", "mean"]
    test_fraction: float
    split_seed: int

    def __post_init__(self) -> None:
        check_split(self.test_fraction, self.split_seed)
        require(self.missing in ("refuse", "mean"), "missing", "must be refuse or mean", self.missing)

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """The task, the training examples, and the test examples."""
        parts = read_parts(self.root, self.label_column, self.group_column, self.test_fraction, self.split_seed)
        known = parts.rows[0].column_names
        unknown = [name for name in self.left_out_columns if name not in known]
        require(not unknown, "left_out_columns", f"must be columns of {parts.files[0]}: {listed(known)}", listed(unknown))
        names = [name for name in known if name not in {self.label_column, self.group_column, *self.left_out_columns}]
        require(len(names) > 0, "root", f"must have a column of numbers beside {listed(known)} in {parts.files[0]}", "none")
        train, test = (self._values(rows, names, file) for rows, file in zip(parts.rows, parts.files))
        gaps = np.isnan(train), np.isnan(test)
        lacking = [names[place] for place in np.flatnonzero(np.concatenate(gaps).any(axis=0))]
        rule = f"must be mean where values are missing (the mean of the training rows), or set data.left_out_columns=[{','.join(lacking)}]"
        number = int(sum(gap.sum() for gap in gaps))
        got = f"{self.missing}, with {number} missing value{'s' if number > 1 else ''} in {listed(lacking)}"
        require(not lacking or self.missing == "mean", "missing", rule, got)
        empty = [name for name, none in zip(names, gaps[0].all(axis=0).tolist()) if none]
        require(not empty, "left_out_columns", "must hold the columns that no training row has a value of", listed(empty))
        mean = np.nanmean(train, axis=0)
        filled = np.where(gaps[0], mean, train), np.where(gaps[1], mean, test)
        path = Path(self.root).expanduser().resolve()
        return task_of_table(path.stem if path.is_file() else path.name, filled, parts.labels, parts.names, parts.groups, parts.group_names)

    def _values(self, rows: pa.Table, names: Sequence[str], file: Path) -> np.ndarray:  # [N, features]
        """The features of rows, NaN where a value is missing."""
        absent = [name for name in names if name not in rows.column_names]
        require(not absent, "root", f"must have the columns of the training rows in {file}", f"none of {listed(absent)}")
        kinds = {name: rows[name].type for name in names}
        numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
        words = [name for name, kind in kinds.items() if not any(is_kind(kind) for is_kind in numbers)]
        rule = f"must hold numbers in {file} beside labels and groups (correct them, or set data.left_out_columns=[{','.join(words)}])"
        require(not words, "root", rule, "; ".join(f"{first_word(rows[name])!r} in column {name}" for name in words))
        columns = [rows[name].cast(pa.float64()).to_numpy() for name in names]
        values = np.stack(columns, axis=1).astype(np.float64)
        if np.isinf(values).any():
            raise ConfigError(f"root must hold finite numbers in {file}, got infinity")
        return values


def first_word(column: pa.ChunkedArray) -> object:
    """The first value of a column that is no number."""
    for value in column.to_pylist():
        try:
            float(value)
        except (TypeError, ValueError):
            if value is not None:
                return value
    return column[0].as_py()


@dataclass(frozen=True, kw_only=True)
class ShippedTable:
    """A table that scikit-learn ships: ``breast_cancer`` (569 rows, 30 features, 2 classes) or ``wine`` (178 rows, 13 features, 3 classes).

    Args:
        name: the table.
        test_fraction: fraction of the rows of each class that are test rows, rounded down.
        split_seed: seed of this split, which is the same for all runs.

    Raises:
        ConfigError: a value is out of its range.
    """

    name: Literal["breast_cancer", "wine"]
    test_fraction: float
    split_seed: int

    def __post_init__(self) -> None:
        check_split(self.test_fraction, self.split_seed)
        require(self.name in TABLES, "name", f"must be one of {', '.join(TABLES)}", self.name)

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """The task, the training examples, and the test examples."""
        spec = find_spec("sklearn")
        folder = Path((spec.submodule_search_locations or ["."])[0] if spec else ".", "datasets", "data")
        with (folder / TABLES[self.name]).open(encoding="utf-8") as file:  # read without importing scikit-learn, which takes a second
            names = tuple(file.readline().strip().split(",")[2:])
            values = np.loadtxt(file, delimiter=",")
        x, y = values[:, :-1], values[:, -1].astype(np.int64)
        is_test = drawn_rows(y, self.test_fraction, self.split_seed)
        return task_of_table(self.name, (x[~is_test], x[is_test]), (y[~is_test], y[is_test]), names)
