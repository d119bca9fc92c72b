"""Tables per client, per architecture, per class, per phase of a round, and of server-side distillation."""

import csv
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from fedkd.metrics.label_skew import effective_classes, label_distance
from simulations.reports.groups import Group, gather
from simulations.reports.statistics import bottom_tenth, jain_index
from simulations.reports.summary import LAST_ROUNDS, blocks, by_seed
from simulations.reports.tables.federated import last_rounds_legend, sample_legend
from simulations.reports.tables.predictions import predictions
from simulations.reports.tables.table import Cell, Column, NumberFormat, Table, counts, ranked, texts
from simulations.run_folder.csv_rows import unescaped
from simulations.run_folder.reader import SETTING, FederatedRun, natural_order

CLIENT_LEGEND = """Local test accuracy, final round; every tested client with test examples counts once.
Standard deviation: over clients (population). Bottom 10 %: mean of the lowest tenth of the tested clients, at least of one.
Jain's index: 1 if all clients are equal, 1/K if one of K clients has everything. Each cell: {cell}."""

CLASS_LEGEND = """In %. {last} Each cell: {cell}."""

NETWORK_LEGEND = """Local test accuracy in %, over all test examples of the clients with that architecture. {last} Each cell: {cell}."""

GROUP_LEGEND = """Local test accuracy in %, over all test examples of the clients of a group; mean: over groups, each counts once. {last}
Each cell: {cell}."""

SERVER_LEGEND = """Global test accuracy in %. {last} Each cell: {cell}."""

PHASE_LEGEND = """Seconds on the machine that ran the run, median over rounds (evaluation: over evaluated rounds). Each cell: {cell}.
Runs that shared a machine, or ran on several machines, do not compare. Phases can overlap, so a round can be shorter than their sum."""

SKEW_LEGEND = """Training labels of the clients.
Label distance: mean total variation between the label distributions of two clients (0: all equal, 1: no class in common).
Effective classes: mean over clients of the exponential of the label entropy. Smallest, largest: examples of these clients.
Each cell: {cell}."""

MAX_CLASSES = 12
"""Classes that a table has room for. With more classes the table has the lowest, the median and the highest one."""

STAGES = {
    "global_test_accuracy_before_distillation": "mean of models",
    "global_test_accuracy": "after server-side distillation",
    "ensemble_test_accuracy": "ensemble",
}
"""Columns of ``metrics.csv`` that strategies with server-side distillation have, and their headings."""

PHASES = {"local_training_seconds": "local training", "server_seconds": "server", "evaluation_seconds": "evaluation"}
"""Phases of a round by column of ``metrics.csv``."""

Statistic = Callable[[np.ndarray], float]
"""A number that is computed from the accuracies of clients or classes."""


@cache
def final_accuracies(run: FederatedRun) -> np.ndarray:  # [K]
    """Local test accuracy by client in the last evaluated round, of the clients with test examples; [] without ``clients.csv``."""
    rows = run.clients
    return rows["local_test_accuracy"][rows["round"] == rows["round"].max()].to_numpy(float) if len(rows) else np.empty(0)


@cache
def class_accuracies(run: FederatedRun) -> np.ndarray:  # [C]
    """Global test accuracy by class, mean of the last ten evaluated rounds; [] without such columns."""
    names = [name for name in map(str, run.metrics) if name.startswith("global_test_accuracy_class_")]
    columns = sorted(names, key=natural_order)
    values = run.metrics[columns].to_numpy(float)
    values = values[~np.isnan(values).all(axis=1)][-LAST_ROUNDS:]
    return pd.DataFrame(values).mean().to_numpy() if len(values) else np.empty(0)


def _first_columns(groups: Sequence[Group]) -> list[Column]:
    """The label and the number of seeds of each group."""
    return [texts("strategy", [one.row for one in groups]), counts("n", [len(one.runs) for one in groups])]


def clients(groups: Sequence[Group], form: NumberFormat) -> Table | None:
    """A row per group: how evenly the clients fare; None without accuracies of clients."""
    found = [one for one in groups if all(len(final_accuracies(run)) for run in one.runs)]
    if not found:
        return None
    figures: dict[str, tuple[Statistic, bool]] = {
        "mean": (lambda x: 100 * x.mean(), False),
        "standard deviation": (lambda x: 100 * x.std(), True),
        "lowest": (lambda x: 100 * x.min(), False),
        "bottom 10 % clients": (lambda x: 100 * bottom_tenth(x), False),
        "Jain's index": (jain_index, False),
    }
    columns = _first_columns(found)
    for title, (statistic, lowest_is_best) in figures.items():
        digits = ".4f" if statistic is jain_index else form.form
        cells = [form.cell([statistic(final_accuracies(run)) for run in one.runs], digits) for one in found]
        columns.append(Column(title, ranked(cells, blocks(found), digits, lowest_is_best)))
    return Table(
        "clients", "Accuracy over clients", tuple(columns), CLIENT_LEGEND.format(cell=form.legend) + sample_legend(found), blocks(found)
    )


def classes(groups: Sequence[Group], form: NumberFormat) -> Table | None:
    """A row per group: global test accuracy by class; None without a global model."""
    found = [one for one in groups if all(len(class_accuracies(run)) for run in one.runs)]
    if not found:
        return None
    number = max(len(class_accuracies(run)) for one in found for run in one.runs)
    figures: dict[str, Statistic] = {"lowest": np.nanmin, "lowest tenth": _lowest_tenth, "median": np.nanmedian, "highest": np.nanmax}
    if number <= MAX_CLASSES:
        names = {run.class_names for one in found for run in one.runs}
        titles = names.pop() if len(names) == 1 else ()
        titles = titles if len(set(titles)) == number else tuple(map(str, range(number)))
        figures = {title: _accuracy_of(label) for label, title in enumerate(titles)}
    columns = _first_columns(found)
    for title, statistic in figures.items():
        cells = [form.cell([100 * statistic(class_accuracies(run)) for run in one.runs], form.short_form) for one in found]
        columns.append(Column(title, ranked(cells, blocks(found), form.short_form)))
    legend = CLASS_LEGEND.format(cell=form.legend, last=last_rounds_legend(found))
    return Table("classes", "Global test accuracy by class", tuple(columns), legend, blocks(found))


def _lowest_tenth(accuracies: np.ndarray) -> float:
    """The mean of the lowest tenth of the classes, without those that the test set lacks (NaN)."""
    return bottom_tenth(accuracies[~np.isnan(accuracies)])


def _accuracy_of(label: int) -> Statistic:
    """The accuracy of one class; NaN where a run has fewer classes."""
    return lambda accuracies: float(accuracies[label]) if label < len(accuracies) else np.nan


def by_architecture(groups: Sequence[Group], form: NumberFormat) -> Table | None:
    """Local test accuracy by the clients' architectures; None where every run has one architecture."""
    by_run = {one: [architectures(run.clients) for run in one.runs] for one in groups}
    names = sorted({name for runs in by_run.values() for run in runs for name in run})
    mixed = [one for one, runs in by_run.items() if any(len(run) > 1 for run in runs)]
    if not mixed:
        return None
    columns = _first_columns(mixed)
    for name in names:
        cells: list[Cell] = [form.percent([run.get(name, np.nan) for run in by_run[one]]) for one in mixed]
        columns.append(Column(name, ranked(cells, blocks(mixed), form.form)))
    legend = NETWORK_LEGEND.format(cell=form.legend, last=last_rounds_legend(mixed)) + sample_legend(mixed)
    return Table("networks", "Local test accuracy by architecture", tuple(columns), legend, blocks(mixed))


def architectures(rows: pd.DataFrame) -> dict[str, float]:
    """Local test accuracy by architecture over the rows of ``clients.csv``; empty where the rows do not name architectures."""
    if not {"architecture", "num_test_examples"} <= set(rows) or rows.empty:
        return {}
    if rows["architecture"].nunique() == 1:
        return {str(rows["architecture"].iloc[0]): float(np.average(rows["local_test_accuracy"], weights=rows["num_test_examples"]))}
    return _pooled(rows, rows["architecture"])


def by_group(groups: Sequence[Group], form: NumberFormat) -> Table | None:
    """Local test accuracy by domain, writer or other group; None where no run has clients of one group each."""
    found = [one for one in groups if all(group_accuracies(run) for run in one.runs)]
    if not found:
        return None
    names = sorted({name for one in found for run in one.runs for name in group_accuracies(run)}, key=natural_order)
    figures: dict[str, Callable[[dict[str, float]], float]] = {"mean": lambda x: float(np.mean(list(x.values())))}
    if len(names) <= MAX_CLASSES:
        figures |= {name: partial(_accuracy_in, name) for name in names}
    else:
        figures |= {"lowest": lambda x: min(x.values()), "lowest tenth": lambda x: bottom_tenth(np.array(list(x.values())))}
        figures |= {"median": lambda x: float(np.median(list(x.values()))), "highest": lambda x: max(x.values())}
    columns = _first_columns(found)
    for title, statistic in figures.items():
        cells = [form.percent([statistic(group_accuracies(run)) for run in one.runs]) for one in found]
        columns.append(Column(title, ranked(cells, blocks(found), form.form)))
    legend = GROUP_LEGEND.format(cell=form.legend, last=last_rounds_legend(found)) + sample_legend(found)
    return Table("groups", "Local test accuracy by group", tuple(columns), legend, blocks(found))


@cache
def group_accuracies(run: FederatedRun) -> dict[str, float]:
    """Local test accuracy by group over the last ten evaluated rounds; empty where clients are not of one group each."""
    rows, names = run.clients, read_test_groups(run.folder)
    if not names or rows.empty or not set(rows["client_id"]) <= set(names) or "num_test_examples" not in rows:
        return {}
    return _pooled(rows, rows["client_id"].map(names))


def read_test_groups(folder: Path) -> dict[int, str]:
    """The group of the local test set of each client, by ``groups.csv``: its domain, writer or speaker.

    Empty if the data have no groups, the file cannot be read, or a client is tested on examples of several groups.
    """
    try:
        with open(folder / "groups.csv", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["num_test_examples"]) > 0]
        groups = {int(row["client_id"]): unescaped(row["name"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}
    return groups if len(groups) == len(rows) else {}


def _accuracy_in(name: str, accuracies: dict[str, float]) -> float:
    """The accuracy of one group; NaN where a run has no such group."""
    return accuracies.get(name, np.nan)


def _pooled(rows: pd.DataFrame, keys: pd.Series) -> dict[str, float]:
    """Accuracy by key over the test examples of rows of ``clients.csv``."""
    correct = rows["local_test_accuracy"] * rows["num_test_examples"]
    sums = pd.DataFrame({"correct": correct, "n": rows["num_test_examples"]}).groupby(keys).sum()
    return {str(name): float(value) for name, value in (sums["correct"] / sums["n"]).items()}


def server_side(groups: Sequence[Group], form: NumberFormat) -> Table | None:
    """Accuracy before and after server-side distillation; None where no strategy distills on the server."""
    found = [one for one in groups if any(name in one.runs[0].metrics for name in STAGES if name != "global_test_accuracy")]
    if not found:
        return None
    columns = _first_columns(found)
    for name, title in STAGES.items():
        columns.append(Column(title, tuple(form.percent([last_mean(run.metrics, name) for run in one.runs]) for one in found)))
    legend = SERVER_LEGEND.format(cell=form.legend, last=last_rounds_legend(found))
    return Table("server", "Before and after server-side distillation", tuple(columns), legend, blocks(found))


def last_mean(metrics: pd.DataFrame, name: str) -> float:
    """The mean of the last ten evaluated rounds; NaN without any."""
    return float(metrics[name].dropna().tail(LAST_ROUNDS).mean()) if name in metrics else np.nan


def phases(groups: Sequence[Group], form: NumberFormat) -> Table:
    """Seconds per round by phase."""
    columns = _first_columns(groups)
    for name, title in PHASES.items():
        columns.append(Column(title, tuple(form.cell(by_seed(one, f"{name}_median"), ".3f") for one in groups)))
    return Table("phases", "Seconds per round by phase", tuple(columns), PHASE_LEGEND.format(cell=form.legend), blocks(groups))


def skew(groups: Sequence[Group], form: NumberFormat) -> Table | None:
    """How different the clients' labels are, a row per setting; None where no partition can be read."""
    rows: dict[str, list[np.ndarray]] = {}
    for same in gather(groups, lambda one: one.runs[0].part(SETTING)):
        found = label_counts(same)
        if found:
            rows[same[0].setting or "all"] = list(found.values())
    if not rows:
        return None
    columns = [texts("setting", list(rows)), counts("n", [len(found) for found in rows.values()])]
    columns.append(Column("label distance", tuple(form.cell([label_distance(c) for c in found], ".3f") for found in rows.values())))
    columns.append(Column("effective classes", tuple(form.cell([effective_classes(c) for c in found], ".2f") for found in rows.values())))
    for title, extreme in (("smallest", np.min), ("largest", np.max)):
        columns.append(Column(title, tuple(form.cell([extreme(c.sum(axis=1)) for c in found], ".1f") for found in rows.values())))
    return Table("skew", "Label distribution", tuple(columns), SKEW_LEGEND.format(cell=form.legend))


def label_counts(groups: Sequence[Group]) -> dict[int, np.ndarray]:  # {seed: [K, C]}
    """Training examples by client and class of each seed on one setting, from the first run that has the file."""
    found: dict[int, np.ndarray] = {}
    for run in sorted((run for one in groups for run in one.runs), key=lambda run: run.seed):
        if run.seed not in found and (counted := _counts(run)) is not None:
            found[run.seed] = counted
    return found


def _counts(run: FederatedRun) -> np.ndarray | None:
    """The run's partition; None where the file cannot be read or holds no example."""
    try:
        found = np.asarray(run.counts())
    except ValueError:
        return None
    return found if found.ndim == 2 and found.size and found.min() >= 0 and found.sum() > 0 else None


TABLES: dict[str, Callable[[Sequence[Group], NumberFormat], Table | None]] = {
    "predictions": predictions, "server": server_side, "clients": clients, "groups": by_group, "networks": by_architecture,
    "classes": classes, "skew": skew, "phases": phases,
}  # fmt: skip
"""The functions that make the tables, by the name of the table."""
