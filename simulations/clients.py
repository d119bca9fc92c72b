"""How a run's accuracy is spread: over clients, over their networks, and over classes."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

from simulations.groups import Group
from simulations.headlines import said
from simulations.runs import Run
from simulations.statistics import jain, worst_tenth
from simulations.summaries import blocks
from simulations.tables import Cell, Column, Table, counts, over_seeds, ranked, texts

CLIENT_LEGEND = """Own labels, last evaluated round, every client with test examples counted once: mean, standard deviation (population), the lowest client,
the mean of the lowest tenth (of one at least), and Jain's index (1: all alike, 1/K: one of K clients has everything). {said}."""
CLASS_LEGEND = """Balanced test by class, in %, mean of the last ten evaluated rounds: {said}."""
NETWORK_LEGEND = """Own labels, mean of the last ten evaluated rounds: all test examples of the clients with that network."""
SHOWN = 12
"""Classes that a table has room for; of more it shows the lowest, the median and the highest."""


@cache
def last_accuracies(run: Run) -> np.ndarray:  # [K]
    """Accuracy on own labels by client in the last evaluated round, clients without test examples left out; [] where the run does not say."""
    rows = run.clients
    return rows["accuracy_own_labels"][rows["round"] == rows["round"].max()].to_numpy(float) if len(rows) else np.empty(0)


@cache
def class_accuracies(run: Run) -> np.ndarray:  # [C]
    """Accuracy in the balanced test by class, mean of the last ten evaluated rounds; [] where the run does not say."""
    columns = sorted(name for name in run.metrics if name.startswith("accuracy_class_"))
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
        return {rows["architecture"].iloc[0]: np.average(rows["accuracy_own_labels"], weights=rows["num_test_examples"])}
    correct = rows["accuracy_own_labels"] * rows["num_test_examples"]
    sums = pd.DataFrame({"correct": correct, "n": rows["num_test_examples"]}).groupby(rows["architecture"]).sum()
    return (sums["correct"] / sums["n"]).to_dict()
