"""Tables beside the headlines, where runs have more to tell: the server's own training, seconds by phase, and who holds what."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fedkd.partition.skew import effective_classes, label_distance
from simulations.groups import Group, gather
from simulations.headlines import said
from simulations.runs import COSTS, SETTING, Run
from simulations.summaries import blocks, by_seed
from simulations.tables import Column, Table, counts, over_seeds, texts

FURTHER = {"accuracy_average": "mean of models", "accuracy": "after the server's training", "accuracy_ensemble": "ensemble"}
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
    told = [one for one in groups if any(name in one.runs[0].metrics for name in FURTHER if name != "accuracy")]
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


def _counts(run: Run) -> np.ndarray | None:
    """The run's partition, or None where it cannot be read or holds nothing."""
    try:
        found = np.asarray(run.counts())
    except ValueError:
        return None
    return found if found.ndim == 2 and found.size and found.min() >= 0 and found.sum() > 0 else None
