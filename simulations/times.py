"""What a run takes until its end and until a target, in rounds, bytes, and seconds of the simulated clock."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from simulations.tables import DASH, NONE, Cell, of_interval

LEGEND = """Simulated s: seconds on the clients' simulated clock, whole run; no machine's own time."""
TARGET_LEGEND = """To {percent:g} %: until the first evaluated round with that accuracy on the balanced test, or on own labels without a global model.
MB: 10^6 bytes up and down. > a (k of n): k of n runs reach it; a is a mean to which the others contribute all that they spent, so that the true one
is above it."""
WAYS = {"rounds": "round", "bytes": "MB", "time": "simulated s"}
"""What it can take to reach a target, and how it is called."""


def progress(metrics: pd.DataFrame) -> dict[str, np.ndarray]:  # {name: [rounds]}
    """Of every round what has been spent until its end: ``rounds``, ``bytes`` up and down, ``time`` (NaN in runs without a clock)."""
    sent = metrics["bytes_up"].to_numpy(float) + metrics["bytes_down"].to_numpy(float)
    time = metrics["simulated_time"].to_numpy(float) if "simulated_time" in metrics else np.full(len(metrics), np.nan)
    return {"rounds": metrics["round"].to_numpy(float), "bytes": sent.cumsum(), "time": time}


def spent(metrics: pd.DataFrame, target: float | None) -> dict[str, float]:
    """One run's simulated time, NaN in runs made before there was a clock, and its way to a target.

    With a ``target``, an accuracy in 0..1: the round that first reaches it, the bytes and the seconds until its end (``to_target``; NaN
    where none does), and the same until then or until the end of the run (``spent``).
    """
    way = progress(metrics)
    summary = {"simulated_time_total": way["time"][-1]}
    if target is None:
        return summary
    accuracy = metrics["accuracy"].to_numpy(float)
    accuracy = metrics["accuracy_own_labels"].to_numpy(float) if np.isnan(accuracy).all() else accuracy
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
