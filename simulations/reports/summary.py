"""Summary numbers of a run, of groups of runs that differ in the seed alone, and the curves of a report.

Headlines are the last round and the mean of the last ten evaluated rounds. The best round is never used: it would select on the test set.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

from simulations.reports.groups import Group
from simulations.reports.statistics import interval
from simulations.reports.tables.table import DASH, NONE, Cell, of_interval
from simulations.run_folder.metric_names import ACCURACIES, COSTS
from simulations.run_folder.reader import STRATEGY, FederatedRun, natural_order


def summarize(metrics: pd.DataFrame, target: float | None = None) -> dict[str, float]:
    """One run in numbers: accuracies in 0..1 (NaN without a global model), bytes over all rounds, seconds a round as medians.

    ``best5_rounds`` is the optimistic figure of FedGen's paper: the mean of the five best rounds in accuracy on own labels. Of the way to a
    ``target`` it says what :func:`simulations.reports.summary.spent` does.
    """
    accuracies = {column: metrics[column].to_numpy(float) for column in ACCURACIES}
    timed = ~np.isnan(list(accuracies.values())).all(axis=0)
    accuracies = {column: values[~np.isnan(values)] for column, values in accuracies.items()}
    values_of = {"best5_rounds": mean(np.sort(accuracies["local_test_accuracy"])[-5:])}
    for column, values in accuracies.items():
        values_of |= {f"{column}_final": values[-1] if len(values) else np.nan, f"{column}_last10": mean(values[-10:])}
    values_of |= {f"{cost}_total": metrics[cost].sum() for cost in COSTS if cost.startswith("bytes")}
    for cost in (cost for cost in COSTS if cost.startswith("seconds")):
        seconds = metrics[cost].to_numpy(float)[timed if cost == "evaluation_seconds" else slice(None)]
        seconds = seconds[~np.isnan(seconds)]
        values_of[f"{cost}_median"] = float(np.median(seconds)) if len(seconds) else np.nan
    return values_of | spent(metrics, target)


def mean(values: np.ndarray) -> float:  # [n]
    """The mean; NaN of nothing."""
    return float(values.mean()) if len(values) else np.nan


@cache
def summary(run: FederatedRun, target: float | None = None) -> dict[str, float]:
    """:func:`summarize` of a run, once."""
    return summarize(run.metrics, target)


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
            row |= {f"{name}_mean": middle, f"{name}_min": lowest, f"{name}_max": highest}
            row |= {f"{name}_ci95": high - middle} if kind == "t" else {f"{name}_low": low, f"{name}_high": high}
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
def _training(run: FederatedRun, tuned: bool) -> frozenset:
    """What a strategy and its baseline must have in common."""
    mine = run.identity - run.part(STRATEGY)
    return frozenset(item for item in mine if not item[0].startswith("optimizer.")) if tuned else mine


def blocks(groups: Sequence[Group]) -> tuple[tuple[str, str], ...]:
    """The block of each group's row."""
    return tuple(one.block for one in groups)


def settings(groups: Sequence[Group]) -> list[str]:
    """The settings, in natural order."""
    return sorted({one.setting for one in groups}, key=natural_order)


ALONG = {
    "rounds": ("Communication round", 1.0),
    "bytes": ("Sent up and down (MB)", 1e-6),
    "time": ("Simulated time (s)", 1.0),
}
"""What accuracy is drawn against: how the axis is called, and its unit."""

NOTHING = pd.DataFrame(columns=["x", "mean", "low", "high", "n"], dtype=float)
"""A curve without points."""

PANELS = {"global_test_accuracy": "balanced test", "local_test_accuracy": "own labels"}


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


LEGEND = """Simulated s: seconds on the clients' simulated clock, whole run; no machine's own time."""

TARGET_LEGEND = """To {percent:g} %: until the first evaluated round with that accuracy on the balanced test, or on own labels without a global model.
MB: 10^6 bytes up and down. > a (k of n): k of n runs reach it; a is a mean to which the others contribute all that they spent, so that the true one
is above it."""

WAYS = {"rounds": "round", "bytes": "MB", "time": "simulated s"}
"""What it can take to reach a target, and how it is called."""


def progress(metrics: pd.DataFrame) -> dict[str, np.ndarray]:  # {name: [rounds]}
    """Of every round what has been spent until its end: ``rounds``, ``bytes`` up and down, ``time`` (NaN in runs without a clock)."""
    sent = metrics["uplink_bytes"].to_numpy(float) + metrics["downlink_bytes"].to_numpy(float)
    time = metrics["simulated_seconds"].to_numpy(float) if "simulated_seconds" in metrics else np.full(len(metrics), np.nan)
    return {"rounds": metrics["round"].to_numpy(float), "bytes": sent.cumsum(), "time": time}


def spent(metrics: pd.DataFrame, target: float | None) -> dict[str, float]:
    """One run's simulated time, NaN in runs made before there was a clock, and its way to a target.

    With a ``target``, an accuracy in 0..1: the round that first reaches it, the bytes and the seconds until its end (``to_target``; NaN
    where none does), and the same until then or until the end of the run (``spent``).
    """
    way = progress(metrics)
    summary = {"simulated_seconds_total": way["time"][-1]}
    if target is None:
        return summary
    accuracy = metrics["global_test_accuracy"].to_numpy(float)
    accuracy = metrics["local_test_accuracy"].to_numpy(float) if np.isnan(accuracy).all() else accuracy
    reached = np.flatnonzero(accuracy >= target)
    last = reached[0] if len(reached) else -1
    for name in WAYS:
        summary |= {f"{name}_to_target": way[name][last] if len(reached) else np.nan, f"{name}_spent": way[name][last]}
    return summary


def to_target(reached: Sequence[float], spent: Sequence[float], ends: Sequence[float], kind: str) -> Cell:
    """The cell of a way to the target: a mean with its interval where all seeds reach it, else a bound and how many do.

    Args:
        reached: by seed, NaN where it does not.
        spent: by seed, until then or until the end of the run.
        ends: mean and both ends of the interval over ``reached``.
        kind: of interval.
    """
    number, n = int(np.isfinite(reached).sum()), len(reached)
    if np.isnan(spent).any():
        return Cell(DASH, n=n)
    if number < n:
        bound = float(np.mean(spent))
        return Cell(f"> {digits(bound)} ({number} of {n})", NONE, bound, NONE, n)
    return shown(*ends, n, kind)


def shown(mean: float, low: float, high: float, n: int, kind: str) -> Cell:
    """``812.4 ± 10.13``; no interval for one seed, and a dash where there is nothing."""
    cell = of_interval(mean, low, high, n, kind)
    if np.isnan(mean) or np.isnan(low):
        return Cell(DASH if np.isnan(mean) else digits(mean), mean, n=n)
    around = f" ± {digits(high - mean)}" if kind == "t" else f" [{digits(low)}, {digits(high)}]"
    return Cell(digits(mean) + around, cell.value, cell.low, cell.high, n)


def digits(value: float) -> str:
    """Four digits, and all before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
