"""A run in numbers, and what runs that differ in the seed alone have in common.

Headlines are the last round and the mean of the last ten evaluated rounds, never the best round: that would select on the test set.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

from simulations import times
from simulations.groups import Group
from simulations.runs import ACCURACIES, COSTS, STRATEGY, Run, natural
from simulations.statistics import interval

HEADLINES = {
    "accuracy_last": "test, last",
    "accuracy_last_ten": "test, last ten",
    "accuracy_own_labels_last": "own, last",
    "accuracy_own_labels_last_ten": "own, last ten",
    "accuracy_worst_tenth_last": "worst tenth",
}
COMPARED = ("accuracy_last_ten", "accuracy_own_labels_last_ten")
"""The headlines that are tested, and set side by side by setting."""


def summarise(metrics: pd.DataFrame, target: float | None = None) -> dict[str, float]:
    """One run in numbers: accuracies in 0..1 (NaN without a global model), bytes over all rounds, seconds a round as medians.

    ``top5_rounds`` is the optimistic figure of FedGen's paper: the mean of the five best rounds in accuracy on own labels. Of the way to a
    ``target`` it says what :func:`simulations.times.spent` does.
    """
    accuracies = {column: metrics[column].to_numpy(float) for column in ACCURACIES}
    timed = ~np.isnan(list(accuracies.values())).all(axis=0)
    accuracies = {column: values[~np.isnan(values)] for column, values in accuracies.items()}
    summary = {"top5_rounds": mean(np.sort(accuracies["accuracy_own_labels"])[-5:])}
    for column, values in accuracies.items():
        summary |= {f"{column}_last": values[-1] if len(values) else np.nan, f"{column}_last_ten": mean(values[-10:])}
    summary |= {f"{cost}_total": metrics[cost].sum() for cost in COSTS if cost.startswith("bytes")}
    for cost in (cost for cost in COSTS if cost.startswith("seconds")):
        seconds = metrics[cost].to_numpy(float)[timed if cost == "seconds_evaluate" else slice(None)]
        seconds = seconds[~np.isnan(seconds)]
        summary[f"{cost}_median"] = float(np.median(seconds)) if len(seconds) else np.nan
    return summary | times.spent(metrics, target)


def mean(values: np.ndarray) -> float:  # [n]
    """The mean; NaN of nothing."""
    return float(values.mean()) if len(values) else np.nan


@cache
def summary(run: Run, target: float | None = None) -> dict[str, float]:
    """:func:`summarise` of a run, once."""
    return summarise(run.metrics, target)


def by_seed(one: Group, name: str, target: float | None = None) -> list[float]:
    """A figure of ``summarise`` for each run of a group."""
    return [summary(run, target)[name] for run in one.runs]


def results(groups: Sequence[Group], target: float | None = None, kind: str = "t") -> pd.DataFrame:
    """One row a group: for every figure of ``summarise`` the mean over seeds, the lowest, the highest, and the 95 % interval.

    That is a half-width by Student's t (``half_width``), and two ends (``low``, ``high``) by a bootstrap. With a ``target``, how many seeds
    reach it too; figures of the way there are NaN unless all do.
    """
    rows = []
    for one in groups:
        rounds, evaluated, _ = one.runs[0].shape
        row = {"label": one.label, "num_seeds": len(one.runs), "seeds": " ".join(map(str, one.seeds)), "rounds": rounds}
        row |= {"tuned": one.tuned} if one.tuned else {}
        row["last_evaluated_round"] = evaluated[-1]
        names = list(summary(one.runs[0], target))
        values = np.array([[summary(run, target)[name] for name in names] for run in one.runs], float)
        if target is not None:
            row |= {"target": target, "num_reached": int(np.isfinite(values[:, names.index("rounds_to_target")]).sum())}
        columns = zip(*interval(values, kind), values.min(axis=0), values.max(axis=0), strict=True)
        for name, (middle, low, high, lowest, highest) in zip(names, columns, strict=True):
            row |= {f"{name}_mean": middle, f"{name}_lowest": lowest, f"{name}_highest": highest}
            row |= {f"{name}_half_width": high - middle} if kind == "t" else {f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def baselines(one: Group, groups: Sequence[Group], baseline: str) -> list[Group]:
    """The groups with which ``one`` is compared: of the ``baseline`` (a strategy, or a line of the report) under the same setting and training.

    They have the same seeds and differ from ``one`` by the strategy's side of the configuration only, and where both are tuned, by the
    optimizer; the nearest of them, and of a run that is tuned and untuned the one that is as ``one`` is. Empty for the baseline itself.
    """
    if is_baseline(one, baseline):
        return []
    mine = one.runs[0]
    found = [other for other in groups if is_baseline(other, baseline) and other.seeds == one.seeds]
    both = [other for other in found if other.tuned == one.tuned == "tuned" and _training(other.runs[0], True) == _training(mine, True)]
    found = both or [other for other in found if _training(other.runs[0], False) == _training(mine, False)]
    found = [other for other in found if other.tuned == one.tuned] or found
    shared = [len(other.runs[0].part(STRATEGY) & mine.part(STRATEGY)) for other in found]
    return [other for other, number in zip(found, shared, strict=True) if number == max(shared)]


def is_baseline(one: Group, baseline: str) -> bool:
    """Whether a group is of the baseline, which names a strategy or a line."""
    return baseline in (one.line, one.runs[0].strategy)


@cache
def _training(run: Run, tuned: bool) -> frozenset:
    """What a strategy and its baseline must have in common."""
    mine = run.identity - run.part(STRATEGY)
    return frozenset(item for item in mine if not item[0].startswith("optimizer.")) if tuned else mine


def blocks(groups: Sequence[Group]) -> tuple[tuple[str, str], ...]:
    """The block of each group's row."""
    return tuple(one.block for one in groups)


def settings(groups: Sequence[Group]) -> list[str]:
    """The settings, in natural order."""
    return sorted({one.setting for one in groups}, key=natural)
