"""What a run says about its data: ``classes.csv``, ``groups.csv``, ``left_out.csv``, ``task.json``, and warnings."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.errors import RunFolderError
from fedkd.files import write_atomically
from fedkd.types import Examples, LeftOut, Partition, Task
from simulations.run_folder.csv_rows import table

CLASS_COLUMNS = ("class", "name", "num_train_examples", "num_test_examples", "num_clients")
"""Columns of ``classes.csv``."""

GROUP_COLUMNS = ("client_id", "group", "name", "num_train_examples", "num_test_examples")
"""Columns of ``groups.csv``."""

MAX_LISTED = 10
"""Classes or clients that a warning lists."""


def write_data_record(
    folder: Path, task: Task, counts: np.ndarray, test_counts: np.ndarray, left_out: Sequence[LeftOut], scale: float
) -> None:
    """Write ``classes.csv`` and ``task.json``, and ``left_out.csv`` where files of the data set are not used.

    Args:
        folder: the run folder.
        task: the classification task.
        counts: training examples by client and class [K, C]. C is 1 where examples have no single classes.
        test_counts: test examples by class [C].
        left_out: files of the data set that are not used.
        scale: the stored pixel that stands for 1.0.
    """
    write_task(folder, task, scale)
    rows = [
        {"class": label, "name": name, "num_train_examples": total, "num_test_examples": test, "num_clients": clients}
        for label, (name, total, test, clients) in enumerate(zip(task.counted_names, counts.sum(0), test_counts, (counts > 0).sum(0)))
    ]
    write_atomically(folder / "classes.csv", table(CLASS_COLUMNS, rows, titled=True).encode())
    if left_out:
        items = [item._asdict() for item in left_out]
        write_atomically(folder / "left_out.csv", table(LeftOut._fields, items, titled=True).encode())


def write_groups(folder: Path, partition: Partition, train: Examples, test: Examples) -> None:
    """Write ``groups.csv``: how many examples of each group each client has. Nothing is written where the training examples have no groups.

    Args:
        folder: the run folder.
        partition: indices of each client's examples in ``train``, and of its local test set in ``test``.
        train: the training set.
        test: the examples that local test sets are taken from.
    """
    if train.groups is None:
        return
    of_train = train.groups.cpu().numpy()
    of_test = np.full(len(test), -1) if test.groups is None else test.groups.cpu().numpy()
    rows = []
    for client, (own, tested) in enumerate(zip(partition.train, partition.test)):
        counts = [dict(zip(*np.unique(of[index], return_counts=True))) for of, index in ((of_train, own), (of_test, tested))]
        for group in sorted({*counts[0], *counts[1]} - {-1}):
            name = train.group_names[group] if train.group_names else str(group)
            rows.append(dict(zip(GROUP_COLUMNS, (client, group, name, counts[0].get(group, 0), counts[1].get(group, 0)))))
    write_atomically(folder / "groups.csv", table(GROUP_COLUMNS, rows, titled=True).encode())


def write_task(folder: Path, task: Task, scale: float) -> None:
    """Write ``task.json``.

    Args:
        folder: the run folder.
        task: the classification task.
        scale: the stored pixel that stands for 1.0.
    """
    write_atomically(folder / "task.json", (json.dumps({**asdict(task), "scale": scale}, indent=1) + "\n").encode())


def read_task(folder: Path) -> tuple[Task, float] | None:
    """The task of a run and the stored pixel that stands for 1.0, from ``task.json``. None if the folder has no such file.

    Raises:
        RunFolderError: the file cannot be read.
    """
    path = folder / "task.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        scale = float(found.pop("scale"))
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
        return Task(**values), scale
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path} must be what a run has written, got {type(error).__name__}: {error}") from error


def data_warnings(task: Task, counts: np.ndarray, test_counts: np.ndarray, left_out: Sequence[LeftOut]) -> list[str]:
    """One line for each thing about the data that a user should know before the run.

    These are classes without training examples, clients without training examples, and files that are not used. The arguments are the
    first ones of :func:`write_data_record`.
    """
    lines = []
    if task.absent:
        tested = {label: int(test_counts[label]) for label in task.absent}
        where = {label: f"in the test set only, {number} examples" if number else "nowhere" for label, number in tested.items()}
        named = [f"{label} ({task.names[label]}: {where[label]})" for label in task.absent]
        lines.append(
            f"{len(task.absent)} of {task.num_classes} classes have no training examples: {_listed(named)}; "
            "models do not learn them, and generators do not draw them"
        )
    if empty := [str(client) for client in np.flatnonzero(counts.sum(axis=1) == 0)]:
        lines.append(f"{len(empty)} of {len(counts)} clients have no training examples and never train: {_listed(empty)}")
    for reason in dict.fromkeys(item.reason.partition(" (")[0] for item in left_out):
        items = [item for item in left_out if item.reason.partition(" (")[0] == reason]
        number = sum(item.number for item in items)
        example = items[0].path + (" and others" if number > 1 else "")
        lines.append(f"{number} not used: {reason} ({example}); left_out.csv in the run folder lists them")
    return [f"warning: {line}" for line in lines]


def _listed(names: Sequence[str]) -> str:
    """Up to ten names."""
    return ", ".join(names[:MAX_LISTED]) + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")
