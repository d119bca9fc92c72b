"""Curves of a report: the mean accuracy over seeds against the round, the traffic, or the simulated time."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

from simulations.reports.groups import Group
from simulations.reports.metrics import CURVES
from simulations.reports.statistics import interval
from simulations.reports.summary import has_clock, progress

X_AXES = {
    "rounds": ("Server round", 1.0),
    "bytes": ("Uplink and downlink (MB)", 1e-6),
    "time": ("Simulated time (s)", 1.0),
}
"""The quantities on the horizontal axis: their labels and their units."""

EMPTY = pd.DataFrame(columns=["x", "mean", "low", "high", "min", "max", "n"], dtype=float)
"""A curve without points."""


@cache
def curve(one: Group, column: str, along: str, kind: str = "t", smoothing: int = 1) -> pd.DataFrame:
    """The mean of an accuracy over seeds, in percent, with its interval and its range.

    After one round, seeds can differ in bytes and in time. Each seed is then interpolated linearly between its evaluated rounds, at the
    mean of all seeds, as far as all seeds got.

    Args:
        one: runs that differ in the seed, hence with the same evaluated rounds.
        column: of ``metrics.csv``.
        along: of :data:`X_AXES`.
        kind: of the interval, as in :func:`simulations.reports.statistics.interval`.
        smoothing: each seed's values are means of so many evaluated rounds, up to the round itself; of fewer at the beginning.

    Returns:
        Columns ``x``, ``mean``, ``low``, ``high``, ``min``, ``max`` and ``n``, one row per point. Empty where the accuracy or the clock is
        missing.
    """
    if any(column not in run.metrics for run in one.runs):
        return EMPTY
    accuracies = [run.metrics[column].to_numpy(float) for run in one.runs]
    spent = [progress(run.metrics)[along] for run in one.runs]
    spent = [x[~np.isnan(y)] for x, y in zip(spent, accuracies, strict=True)]
    values = [smoothed(100 * y[~np.isnan(y)], smoothing) for y in accuracies]
    if not all(map(len, values)) or len(set(map(len, values))) > 1 or np.isnan(spent).any():
        return EMPTY
    grid = np.mean(spent, axis=0) if np.ptp(spent, axis=0).any() else spent[0]
    grid = grid[(grid >= max(x[0] for x in spent)) & (grid <= min(x[-1] for x in spent))]
    seeds = np.array([np.interp(grid, x, y) for x, y in zip(spent, values, strict=True)])
    mean, low, high = interval(seeds, kind)
    ends = {"low": low, "high": high, "min": seeds.min(axis=0), "max": seeds.max(axis=0)}
    return pd.DataFrame({"x": grid * X_AXES[along][1], "mean": mean, **ends, "n": len(one.runs)})


def smoothed(values: np.ndarray, window: int) -> np.ndarray:  # [n] -> [n]
    """The moving average over ``window`` values up to each one; over fewer at the beginning."""
    if window == 1:
        return values
    return pd.Series(values).rolling(window, min_periods=1).mean().to_numpy()


def curve_table(groups: Sequence[Group], columns: Sequence[str] = tuple(CURVES), kind: str = "t", smoothing: int = 1) -> pd.DataFrame:
    """All curves of a report as one table: a row per group, axis, metric and point."""
    tables = [
        curve(one, column, along, kind, smoothing).assign(label=one.label, along=along, metric=column)
        for one in groups
        for along in axes_of(groups)
        for column in columns
    ]
    order = ["label", "along", "metric", *EMPTY.columns]
    return pd.concat([table for table in tables if len(table)] or [EMPTY.assign(label="", along="", metric="")])[order]


def axes_of(groups: Sequence[Group]) -> list[str]:
    """The horizontal axes for these groups: simulated time only where a clock is configured."""
    return [along for along in X_AXES if along != "time" or has_clock(groups)]
