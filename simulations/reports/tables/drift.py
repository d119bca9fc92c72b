"""Accuracy over time in runs whose data drift: forgetting where classes arrive as tasks, and the dip and the recovery of other drifts."""

from collections.abc import Callable, Sequence
from functools import cache
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from simulations.reports.groups import Group
from simulations.reports.summary import blocks
from simulations.reports.tables.federated import resource
from simulations.reports.tables.table import DASH, NONE, Cell, Column, NumberFormat, Table, counts, texts
from simulations.run_folder.reader import FederatedRun

TASK_LEGEND = """Global test accuracy in %, with a[t][j]: on the test examples of task j after the last round of task t, among all classes.
A_t: on the test examples of all tasks up to t. Final: A_T after the last task. AIA: the mean of A_t over tasks.
Forgetting: the mean over earlier tasks j of the highest a[t][j] before the last task, minus a[T][j], in points; lower is better.
Backward transfer: the mean over earlier tasks j of a[T][j] - a[j][j], in points. New task: the mean of a[t][t].
Each cell: {cell}."""

DRIFT_LEGEND = """Local test accuracy in %. Prequential: the models of a round on the clients' data of the next round, mean over rounds.
Before: mean of the last {window} evaluated rounds before the first change. Dip: that level minus the lowest accuracy from the change on, in
points, with the models from before the change on the new data included. Recovery: rounds after the change until the accuracy is
within 1 point of the level; > a (k of n): k of n runs recover, and the others count with all their rounds.
Each cell: {cell}."""

WINDOW = 5
"""Evaluated rounds whose mean is the level before a change."""

MARGIN = 0.01
"""A run has recovered where its accuracy is at most so far below the level before the change."""


@cache
def first_rounds(run: FederatedRun) -> list[int]:
    """The first round of each phase that has begun. Empty for a run without drift, or whose ``phases.npz`` cannot be read."""
    try:
        with np.load(run.folder / "phases.npz") as arrays:
            return [int(number) for number in arrays["first_round"] if number <= len(run.metrics)]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return []


@cache
def task_accuracies(run: FederatedRun) -> pd.DataFrame:
    """The accuracy of the global model, 0..1, by round (rows) and task (columns). Empty where classes do not arrive as tasks."""
    path = run.folder / "tasks.csv"
    if not path.is_file():
        return pd.DataFrame()
    rows = pd.read_csv(path)
    rows = rows[rows["round"] <= len(run.metrics)]
    return rows.assign(accuracy=rows["num_correct"] / rows["num_test_examples"]).pivot(index="round", columns="task", values="accuracy")


@cache
def task_matrix(run: FederatedRun) -> np.ndarray:  # [T, T]
    """``a[t][j]``: the accuracy on task j in the last evaluated round of task t; NaN where it is not known. [0, 0] without tasks."""
    table, begins = task_accuracies(run), first_rounds(run)
    if table.empty:
        return np.empty((0, 0))
    found = np.full((len(begins), len(begins)), np.nan)
    for task, (begin, end) in enumerate(zip(begins, [*begins[1:], len(run.metrics) + 1], strict=True)):
        inside = table[(table.index >= begin) & (table.index < end)]
        if len(inside):
            found[task, : task + 1] = inside.iloc[-1].to_numpy(float)[: task + 1]
    return found


def task_measures(run: FederatedRun) -> dict[str, float]:
    """Final accuracy, average incremental accuracy, forgetting, backward transfer and accuracy on new tasks, as fractions."""
    matrix, begins = task_matrix(run), first_rounds(run)
    seen = run.metrics.set_index("round")["seen_classes_accuracy"].dropna()
    ends = [*(begin - 1 for begin in begins[1:]), len(run.metrics)]
    after = [seen[(seen.index >= begin) & (seen.index <= end)].iloc[-1:].mean() for begin, end in zip(begins, ends, strict=True)]
    earlier = range(len(begins) - 1)
    forgotten = [np.nanmax(matrix[j:-1, j]) - matrix[-1, j] for j in earlier]
    transfer = [matrix[-1, j] - matrix[j, j] for j in earlier]
    return {
        "final": after[-1],
        "aia": float(np.mean(after)),
        "forgetting": float(np.mean(forgotten)) if forgotten else NONE,
        "transfer": float(np.mean(transfer)) if transfer else NONE,
        "new": float(np.mean(np.diag(matrix))),
    }


def drift_measures(run: FederatedRun) -> dict[str, float]:
    """Prequential accuracy, level before the first change, dip and lowest point as fractions, and rounds until recovery; NaN if unknown.

    ``recovery`` is infinite for a run that does not recover; ``rounds_after`` are its rounds from the change on.
    """
    change, table = first_rounds(run)[1], run.metrics.set_index("round")
    local, next_round = (table[name].dropna() for name in ("local_test_accuracy", "prequential_accuracy"))
    level = local[local.index < change].iloc[-WINDOW:].mean()
    after = local[local.index >= change]
    at_change = next_round[next_round.index == change - 1]
    back = after.index[after >= level - MARGIN]
    return {
        "prequential": next_round.mean(),
        "before": level,
        "dip": level - min([*at_change, *after]) if len(after) else NONE,
        "recovery": float(back[0] - change + 1) if len(back) else float("inf"),
        "rounds_after": float(len(run.metrics) - change + 1),
    }


def tasks_table(groups: Sequence[Group], form: NumberFormat) -> Table | None:
    """A row per group whose classes arrive as tasks; None without any."""
    groups = [one for one in groups if one.runs and all(task_matrix(run).size for run in one.runs)]
    names = {
        "final": "final acc.", "aia": "AIA", "new": "acc. on the new task", "forgetting": "forgetting", "transfer": "backward transfer",
    }  # fmt: skip
    if not groups:
        return None
    columns = [Column(title, _percents(groups, task_measures, name, form)) for name, title in names.items()]
    return _table("tasks", "Classes that arrive as tasks", groups, columns, TASK_LEGEND.format(cell=form.legend))


def drift_table(groups: Sequence[Group], form: NumberFormat) -> Table | None:
    """A row per group whose clients' data change in another way; None without any."""
    groups = [one for one in groups if one.runs and all(is_drift(run) for run in one.runs)]
    if not groups:
        return None
    names = {"prequential": "prequential acc.", "before": "acc. before", "dip": "dip"}
    columns = [Column(title, _percents(groups, drift_measures, name, form)) for name, title in names.items()]
    columns.append(Column("rounds to recovery", tuple(_recovery(one, form) for one in groups)))
    return _table("drift", "Drift", groups, columns, DRIFT_LEGEND.format(cell=form.legend, window=WINDOW))


def is_drift(run: FederatedRun) -> bool:
    """The data of the run's clients change, and classes do not arrive as tasks."""
    return len(first_rounds(run)) > 1 and not task_matrix(run).size and "prequential_accuracy" in run.metrics


def _percents(
    groups: Sequence[Group], measures: Callable[[FederatedRun], dict[str, float]], name: str, form: NumberFormat
) -> tuple[Cell, ...]:
    """A measure of each group in percent."""
    return tuple(form.percent([measures(run)[name] for run in one.runs]) for one in groups)


def _recovery(one: Group, form: NumberFormat) -> Cell:
    """The mean number of rounds until recovery, or a lower bound where runs do not recover."""
    found = [drift_measures(run) for run in one.runs]
    values = np.array([min(measures["recovery"], measures["rounds_after"]) for measures in found])
    recovered = sum(np.isfinite(measures["recovery"]) for measures in found)
    if recovered == len(found):
        return resource(values, form)
    return Cell(
        f"> {values.mean():.4g} ({recovered} of {len(found)})" if len(found) else DASH, NONE, float(values.mean()), NONE, len(found)
    )


def _table(name: str, title: str, groups: Sequence[Group], columns: Sequence[Column], legend: str) -> Table:
    """A table with a row per group."""
    first = [texts("strategy", [one.row for one in groups]), counts("n", [len(one.runs) for one in groups])]
    return Table(name, title, (*first, *columns), legend, blocks(groups))
