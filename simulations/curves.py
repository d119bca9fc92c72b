"""Accuracy along rounds, bytes and simulated time: the numbers behind the curves of a report."""

from functools import cache

import numpy as np
import pandas as pd

from simulations.groups import Group
from simulations.statistics import interval
from simulations.times import progress

ALONG = {
    "rounds": ("Communication round", 1.0),
    "bytes": ("Sent up and down (MB)", 1e-6),
    "time": ("Simulated time (s)", 1.0),
}
"""What accuracy is drawn against: how the axis is called, and its unit."""
NOTHING = pd.DataFrame(columns=["x", "mean", "low", "high", "n"], dtype=float)
"""A curve without points."""
PANELS = {"accuracy": "balanced test", "accuracy_own_labels": "own labels"}


@cache
def curve(one: Group, column: str, along: str, kind: str = "t") -> pd.DataFrame:
    """The mean of an accuracy over seeds, in percent, and the ends of its interval: columns ``x``, ``mean``, ``low``, ``high``, ``n``.

    Seeds stand at unlike bytes and times after the same round: each is then read, between its evaluated rounds on a straight line, where
    the mean over seeds stands, as far as all of them got. Empty where the accuracy or the clock is missing.

    Args:
        one: runs that differ in the seed, hence with the same evaluated rounds.
        column: of the metrics.
        along: of :data:`ALONG`.
        kind: of interval.
    """
    accuracies = [run.metrics[column].to_numpy(float) for run in one.runs]
    spent = [progress(run.metrics)[along] for run in one.runs]
    spent = [x[~np.isnan(y)] for x, y in zip(spent, accuracies, strict=True)]
    values = [100 * y[~np.isnan(y)] for y in accuracies]
    if not all(map(len, values)) or len(set(map(len, values))) > 1 or np.isnan(spent).any():
        return NOTHING
    grid = np.mean(spent, axis=0) if np.ptp(spent, axis=0).any() else spent[0]
    grid = grid[(grid >= max(x[0] for x in spent)) & (grid <= min(x[-1] for x in spent))]
    values = [np.interp(grid, x, y) for x, y in zip(spent, values, strict=True)]
    mean, low, high = interval(np.array(values), kind)
    return pd.DataFrame({"x": grid * ALONG[along][1], "mean": mean, "low": low, "high": high, "n": len(one.runs)})
