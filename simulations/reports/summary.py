"""Summary metrics of runs, means over the seeds of a group, and the baseline of each group."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from simulations.reports.groups import Group
from simulations.reports.metrics import FINAL, LAST, column_of, is_class_accuracy
from simulations.reports.statistics import interval, is_range
from simulations.run_folder.metric_names import ACCURACIES, COSTS, FURTHER_HEADLINES, is_accuracy
from simulations.run_folder.reader import STRATEGY, FederatedRun

LAST_ROUNDS = 10
"""Evaluated rounds of which a headline metric is the mean."""

RESOURCES = ("rounds", "bytes", "time")
"""The resources that a run spends until it reaches a target."""

CLOCK = {"examples_per_second": 1000.0, "speed_sigma": 0.0, "bytes_per_second": 1e6, "bandwidth_sigma": 0.0, "deadline": None}
"""Keys of ``systems`` that configure the simulated clock, and their default values."""


def summarize(metrics: pd.DataFrame, target: float | None = None) -> dict[str, float]:
    """Summary metrics of one run.

    Headline metrics are the last evaluated round (``*_final``) and the mean of the last ten (``*_last10``), never the best round, which
    would select on the test set. ``best5_rounds`` is the published metric of FedGen: the mean of the five best rounds in local test
    accuracy.

    Args:
        metrics: the rows of ``metrics.csv``.
        target: an accuracy in (0, 1]; see :func:`spent`.

    Returns:
        Accuracies in 0..1 (NaN without a global model), bytes over all rounds (``*_total``), and seconds per round as medians over rounds
        (``*_median``).
    """
    accuracies = {column: metrics[column].to_numpy(float) for column in ACCURACIES}
    evaluated = ~np.isnan(list(accuracies.values())).all(axis=0)
    found = {"best5_rounds": mean_of(np.sort(evaluations(metrics, "local_test_accuracy"))[-5:])}
    further = [name for name in map(str, metrics) if is_accuracy(name) and name not in ACCURACIES and not is_class_accuracy(name)]
    found |= {name: headline(metrics, name) for name in FURTHER_HEADLINES if column_of(name) in metrics}
    found |= {f"{column}{end}": headline(metrics, f"{column}{end}") for column in (*ACCURACIES, *further) for end in (FINAL, LAST)}
    for cost in COSTS:
        values = metrics[cost].to_numpy(float)
        if cost.endswith("_bytes"):
            found[f"{cost}_total"] = values.sum()
        else:
            seconds = values[evaluated] if cost == "evaluation_seconds" else values
            seconds = seconds[~np.isnan(seconds)]
            found[f"{cost}_median"] = float(np.median(seconds)) if len(seconds) else np.nan
    return found | spent(metrics, target)


def evaluations(metrics: pd.DataFrame, column: str) -> np.ndarray:  # [rounds]
    """The values of a column in the rounds that have one; none without the column."""
    return metrics[column].dropna().to_numpy(float) if column in metrics else np.empty(0)


def headline(metrics: pd.DataFrame, name: str) -> float:
    """An accuracy of the last evaluated round (``*_final``), or the mean of the last ten (``*_last10``); NaN without one."""
    values = evaluations(metrics, column_of(name))
    return mean_of(values[-1:] if name.endswith(FINAL) else values[-LAST_ROUNDS:])


def mean_of(values: np.ndarray) -> float:  # [n]
    """The mean; NaN without values."""
    return float(values.mean()) if len(values) else np.nan


@cache
def summary(run: FederatedRun, target: float | None = None) -> dict[str, float]:
    """:func:`summarize` of a run, computed once."""
    found = summarize(run.metrics, target)
    return found if configures_clock(run.config.get("systems") or {}) else without_clock(found)


def without_clock(found: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a run that configures no clock: its simulated seconds, which follow from default speeds alone, are NaN."""
    return {name: np.nan if name.startswith(("simulated_seconds", "time_")) else value for name, value in found.items()}


def by_seed(one: Group, name: str, target: float | None = None) -> list[float]:
    """A metric of :func:`summarize` or another :func:`headline` for each run of a group; NaN for a run without it."""
    found = [(run, summary(run, target)) for run in one.runs]
    return [mine[name] if name in mine else headline(run.metrics, name) for run, mine in found]


def results(groups: Sequence[Group], target: float | None = None, kind: str = "t") -> pd.DataFrame:
    """One row per group: of every metric of :func:`summarize` the mean over seeds, the minimum, the maximum, and the 95 % interval.

    The interval is a half-width by Student's t (``*_ci95``), one standard deviation (``*_std``), or two ends by a bootstrap (``*_low``,
    ``*_high``). At n = 2 the half-width is NaN, and the two ends are the minimum and the maximum. ``num_diverged`` counts the runs that are
    in no mean because they diverged. With a ``target``, ``num_reached`` counts the seeds that reach it. Metrics of the way to the target
    are NaN unless all do.
    """
    rows = []
    for one in groups:
        row: dict[str, object] = {"label": one.label, "strategy": one.strategy, "setting": one.setting}
        row |= {"num_seeds": len(one.runs), "num_diverged": len(one.diverged), "seeds": " ".join(map(str, one.seeds))}
        row |= {"rounds": one.first.config["rounds"]} | ({"tuned": one.tuned} if one.tuned else {})
        if not one.runs:
            rows.append(row)
            continue
        _, evaluated, _ = one.runs[0].shape
        row["last_evaluated_round"] = evaluated[-1]
        names = [name for name in summary(one.runs[0], target) if all(name in summary(run, target) for run in one.runs)]
        values = np.array([[summary(run, target)[name] for name in names] for run in one.runs], float)
        if target is not None:
            row |= {"target": target, "num_reached": int(np.isfinite(values[:, names.index("rounds_to_target")]).sum())}
        columns = zip(*interval(values, kind), values.min(axis=0), values.max(axis=0), strict=True)
        for name, (middle, low, high, lowest, highest) in zip(names, columns, strict=True):
            row |= {f"{name}_mean": middle, f"{name}_min": lowest, f"{name}_max": highest}
            half = np.nan if is_range(len(values), kind) else high - middle
            named = {"t": "ci95", "std": "std"}.get(kind)
            row |= {f"{name}_low": low, f"{name}_high": high} if named is None else {f"{name}_{named}": half}
        rows.append(row)
    return pd.DataFrame(rows)


def last_rounds(groups: Sequence[Group]) -> int:
    """The evaluated rounds of which ``last10`` metrics are the mean: ten, or fewer where all groups have fewer."""
    return min(LAST_ROUNDS, max((len(one.runs[0].shape[1]) for one in groups if one.runs), default=LAST_ROUNDS))


def has_clock(groups: Sequence[Group]) -> bool:
    """Some run configures the simulated clock of its clients, and has its times."""
    return any(_has_clock(run) for one in groups for run in one.runs)


def configures_clock(systems: Mapping[str, Any]) -> bool:
    """Some value of the part ``systems`` differs from the default of :data:`CLOCK`."""
    return any(systems.get(key, default) != default for key, default in CLOCK.items())


@cache
def _has_clock(run: FederatedRun) -> bool:
    """The run configures its clock: some value of :data:`CLOCK` is not the default."""
    systems = run.config.get("systems") or {}
    return configures_clock(systems) and not np.isnan(progress(run.metrics)["time"]).all()


def baselines(one: Group, groups: Sequence[Group], baseline: str) -> list[Group]:
    """The groups with which ``one`` is compared: of the ``baseline``, under the same setting and training.

    They have the same seeds, and differ from ``one`` in the strategy's side of the configuration only; where both are tuned, also in the
    optimizer. Of several, the nearest is kept, and of a run that is tuned and untuned the one of the same kind as ``one``. A baseline with
    another aggregator or a server optimizer is compared with the one that has neither. Empty for the baseline itself.

    Args:
        one: the group.
        groups: all groups.
        baseline: a strategy, or a line of the report.
    """
    is_variant = one.is_called(baseline)
    if is_variant and one.is_plain:
        return []
    mine = one.runs[0]
    found = [other for other in groups if other.is_called(baseline) and other.seeds == one.seeds and (other.is_plain or not is_variant)]
    both = [other for other in found if other.tuned == one.tuned == "tuned" and _training(other.runs[0], True) == _training(mine, True)]
    found = both or [other for other in found if _training(other.runs[0], False) == _training(mine, False)]
    found = [other for other in found if other.tuned == one.tuned] or found
    shared = [len(other.runs[0].part(STRATEGY) & mine.part(STRATEGY)) for other in found]
    return [other for other, number in zip(found, shared, strict=True) if number == max(shared)]


@cache
def _training(run: FederatedRun, tuned: bool) -> frozenset:
    """The configuration that a strategy and its baseline must have in common."""
    mine = run.identity - run.part(STRATEGY)
    return frozenset(item for item in mine if not item[0].startswith("optimizer.")) if tuned else mine


def blocks(groups: Sequence[Group]) -> tuple[tuple[str, str], ...]:
    """The block of each group's row."""
    return tuple(one.block for one in groups)


def progress(metrics: pd.DataFrame) -> dict[str, np.ndarray]:  # {resource: [rounds]}
    """The resources that are spent until the end of each round: ``rounds``, ``bytes`` up and down, ``time`` (NaN without a clock)."""
    sent = metrics["uplink_bytes"].to_numpy(float) + metrics["downlink_bytes"].to_numpy(float)
    time = metrics["simulated_seconds"].to_numpy(float) if "simulated_seconds" in metrics else np.full(len(metrics), np.nan)
    return {"rounds": metrics["round"].to_numpy(float), "bytes": sent.cumsum(), "time": time}


def spent(metrics: pd.DataFrame, target: float | None) -> dict[str, float]:
    """The simulated time of one run (NaN without a clock), and the resources that it spends until a target is reached.

    Args:
        metrics: the rows of ``metrics.csv``.
        target: an accuracy in (0, 1], in the global test, or in the local test of a strategy without a global model.

    Returns:
        ``*_to_target``: rounds, bytes and seconds until the end of the first round that reaches the target, NaN where none does.
        ``*_spent``: the same, or those of the whole run where no round reaches the target.
    """
    way = progress(metrics)
    found = {"simulated_seconds_total": way["time"][-1]}
    if target is None:
        return found
    accuracy = metrics["global_test_accuracy"].to_numpy(float)
    accuracy = metrics["local_test_accuracy"].to_numpy(float) if np.isnan(accuracy).all() else accuracy
    reached = np.flatnonzero(accuracy >= target)
    last = reached[0] if len(reached) else -1
    for name in RESOURCES:
        found |= {f"{name}_to_target": way[name][last] if len(reached) else np.nan, f"{name}_spent": way[name][last]}
    return found
