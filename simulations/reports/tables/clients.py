"""Tables per client, per architecture, per class, and per phase of a round."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

from fedkd.metrics.label_skew import effective_classes, label_distance
from simulations.reports.groups import Group, gather
from simulations.reports.statistics import jain, worst_tenth
from simulations.reports.summary import blocks, by_seed
from simulations.reports.tables.federated import said
from simulations.reports.tables.table import Cell, Column, Table, counts, over_seeds, ranked, texts
from simulations.run_folder.metric_names import COSTS
from simulations.run_folder.reader import SETTING, FederatedRun

CLIENT_LEGEND = """Own labels, last evaluated round, every client with test examples counted once: mean, standard deviation (population), the lowest client,
the mean of the lowest tenth (of one at least), and Jain's index (1: all alike, 1/K: one of K clients has everything). {said}."""

CLASS_LEGEND = """Balanced test by class, in %, mean of the last ten evaluated rounds: {said}."""

NETWORK_LEGEND = """Own labels, mean of the last ten evaluated rounds: all test examples of the clients with that network."""

SHOWN = 12
"""Classes that a table has room for; of more it shows the lowest, the median and the highest."""


@cache
def last_accuracies(run: FederatedRun) -> np.ndarray:  # [K]
    """Accuracy on own labels by client in the last evaluated round, clients without test examples left out; [] where the run does not say."""
    rows = run.clients
    return rows["local_test_accuracy"][rows["round"] == rows["round"].max()].to_numpy(float) if len(rows) else np.empty(0)


@cache
def class_accuracies(run: FederatedRun) -> np.ndarray:  # [C]
    """Accuracy in the balanced test by class, mean of the last ten evaluated rounds; [] where the run does not say."""
    columns = sorted(name for name in run.metrics if name.startswith("global_test_accuracy_class_"))
    values = run.metrics[columns].to_numpy(float)
    values = values[~np.isnan(values).all(axis=1)][-10:]
    return pd.DataFrame(values).mean().to_numpy() if len(values) else np.empty(0)


def clients(groups: Sequence[Group], kind: str) -> Table | None:
    """A row a group: how evenly clients fare; None where no run says."""
    told = [one for one in groups if all(len(last_accuracies(run)) for run in one.runs)]
    if not told:
        return None
    figures = {
        "mean": (lambda x: 100 * x.mean(), False),
        "standard deviation": (lambda x: 100 * x.std(), True),
        "lowest": (lambda x: 100 * x.min(), False),
        "worst tenth": (lambda x: 100 * worst_tenth(x), False),
        "Jain's index": (jain, False),
    }
    columns = [texts("strategy", [one.label for one in told]), counts("n", [len(one.runs) for one in told])]
    for title, (figure, lowest) in figures.items():
        form = ".4f" if figure is jain else ".2f"
        cells = [over_seeds([figure(last_accuracies(run)) for run in one.runs], kind, form) for one in told]
        columns.append(Column(title, ranked(cells, blocks(told), form, lowest)))
    legend = CLIENT_LEGEND.format(said="M" + said(kind)[1:])
    return Table("clients", "Accuracy over clients", tuple(columns), legend, blocks(told))


def classes(groups: Sequence[Group], kind: str) -> Table | None:
    """A row a group: the balanced test by class; None where no run says."""
    told = [one for one in groups if all(len(class_accuracies(run)) for run in one.runs)]
    if not told:
        return None
    number = max(len(class_accuracies(run)) for one in told for run in one.runs)
    if number <= SHOWN:
        figures = {str(label): lambda x, label=label: x[label] if label < len(x) else np.nan for label in range(number)}
    else:
        figures = {"lowest": np.min, "lowest tenth": worst_tenth, "median": np.median, "highest": np.max}
    columns = [texts("strategy", [one.label for one in told]), counts("n", [len(one.runs) for one in told])]
    for title, figure in figures.items():
        cells = [over_seeds([100 * figure(class_accuracies(run)) for run in one.runs], kind, ".1f") for one in told]
        columns.append(Column(title, ranked(cells, blocks(told), ".1f")))
    return Table("classes", "Accuracy by class", tuple(columns), CLASS_LEGEND.format(said=said(kind)), blocks(told))


def by_network(groups: Sequence[Group], kind: str) -> Table | None:
    """The accuracy on own labels by the clients' networks; None where all clients of all runs have one."""
    found = {one: [networks(run.clients) for run in one.runs] for one in groups}
    names = sorted({name for runs in found.values() for run in runs for name in run})
    mixed = [one for one, runs in found.items() if any(len(run) > 1 for run in runs)]
    if not mixed:
        return None
    columns = [texts("strategy", [one.label for one in mixed]), counts("n", [len(one.runs) for one in mixed])]
    for name in names:
        cells: list[Cell] = [over_seeds([100 * run.get(name, np.nan) for run in found[one]], kind) for one in mixed]
        columns.append(Column(name, ranked(cells, blocks(mixed))))
    return Table("networks", "Own labels by network", tuple(columns), NETWORK_LEGEND, blocks(mixed))


def networks(rows: pd.DataFrame) -> dict[str, float]:
    """Accuracy on own labels by network, over the last ten evaluated rounds; nothing where the run does not say."""
    if not {"architecture", "num_test_examples"} <= set(rows) or rows.empty:
        return {}
    if rows["architecture"].nunique() == 1:
        return {rows["architecture"].iloc[0]: np.average(rows["local_test_accuracy"], weights=rows["num_test_examples"])}
    correct = rows["local_test_accuracy"] * rows["num_test_examples"]
    sums = pd.DataFrame({"correct": correct, "n": rows["num_test_examples"]}).groupby(rows["architecture"]).sum()
    return (sums["correct"] / sums["n"]).to_dict()


FURTHER = {
    "global_test_accuracy_before_distillation": "mean of models",
    "global_test_accuracy": "after the server's training",
    "ensemble_test_accuracy": "ensemble",
}

SERVER_LEGEND = """Balanced test, mean of the last ten evaluated rounds: the mean of the clients' models, what the server makes of it, and the ensemble
from which it learns."""

PHASES = {
    name: name.removeprefix("seconds_").replace("local", "local training").replace("evaluate", "evaluation")
    for name in COSTS
    if "seconds" in name
}

PHASE_LEGEND = """Seconds of a round on the machine that ran it, the median over rounds (evaluation: over evaluated ones): {said}. Runs that
shared a machine, or ran on several, do not compare; phases may overlap, so that a round can be shorter than their sum."""

SKEW_LEGEND = """How unlike the clients' training labels are, {said}: label distance, the mean total variation between two clients (0: all alike, 1: no class in
common); effective classes, the mean exponential of the entropy of a client's labels; examples of the smallest and the largest client."""


def server_side(groups: Sequence[Group], kind: str) -> Table | None:
    """Accuracy before and after the server's own training; None where no run has any."""
    told = [one for one in groups if any(name in one.runs[0].metrics for name in FURTHER if name != "global_test_accuracy")]
    if not told:
        return None
    columns = [texts("strategy", [one.label for one in told]), counts("n", [len(one.runs) for one in told])]
    for name, title in FURTHER.items():
        cells = [over_seeds([100 * last_ten(run.metrics, name) for run in one.runs], kind) for one in told]
        columns.append(Column(title, tuple(cells)))
    return Table("server", "Before and after the server's own training", tuple(columns), SERVER_LEGEND, blocks(told))


def last_ten(metrics: pd.DataFrame, name: str) -> float:
    """The mean of the last ten evaluated rounds; NaN without any."""
    return metrics[name].dropna().tail(10).mean() if name in metrics else np.nan


def phases(groups: Sequence[Group], kind: str) -> Table:
    """Seconds a round by phase."""
    columns = [texts("strategy", [one.label for one in groups]), counts("n", [len(one.runs) for one in groups])]
    for name, title in PHASES.items():
        columns.append(Column(title, tuple(over_seeds(by_seed(one, f"{name}_median"), kind, ".3f") for one in groups)))
    return Table("phases", "Seconds a round", tuple(columns), PHASE_LEGEND.format(said=said(kind)), blocks(groups))


def skew(groups: Sequence[Group], kind: str) -> Table | None:
    """How labels are distributed over clients, by setting; None where no partition can be read."""
    rows: dict[str, list[np.ndarray]] = {}
    for same in gather(groups, lambda one: one.runs[0].part(SETTING)):
        found = held(same)
        if found:
            rows[same[0].setting or "all"] = [counts_ for counts_ in found.values()]
    if not rows:
        return None
    columns = [texts("setting", list(rows)), counts("n", [len(found) for found in rows.values()])]
    columns.append(Column("label distance", tuple(over_seeds([label_distance(c) for c in found], kind, ".3f") for found in rows.values())))
    columns.append(Column("effective classes", tuple(over_seeds([effective_classes(c) for c in found], kind) for found in rows.values())))
    for title, extreme in (("smallest", np.min), ("largest", np.max)):
        columns.append(Column(title, tuple(over_seeds([extreme(c.sum(axis=1)) for c in found], kind, ".1f") for found in rows.values())))
    return Table("skew", "Label distribution", tuple(columns), SKEW_LEGEND.format(said=said(kind)))


def held(groups: Sequence[Group]) -> dict[int, np.ndarray]:  # {seed: [K, C]}
    """The partition of each seed on one setting, of the first run that has it."""
    found: dict[int, np.ndarray] = {}
    for run in sorted((run for one in groups for run in one.runs), key=lambda run: run.seed):
        if run.seed not in found and (counts_ := _counts(run)) is not None:
            found[run.seed] = counts_
    return found


def _counts(run: FederatedRun) -> np.ndarray | None:
    """The run's partition, or None where it cannot be read or holds nothing."""
    try:
        found = np.asarray(run.counts())
    except ValueError:
        return None
    return found if found.ndim == 2 and found.size and found.min() >= 0 and found.sum() > 0 else None
