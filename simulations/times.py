"""Time to accuracy on the simulated clock: how long a run lasts, and when it first reaches a target."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

LEGEND = """Simulated s: seconds on the clients' simulated clock, whole run; no machine's own time."""
TARGET_LEGEND = """To {percent:g} %: until the first evaluated round with that accuracy on the balanced test, or on own labels without a global model.
> a (k of n): k of n runs reach it; a is a mean to which the others contribute all of their time, so that the true one is above it."""


def clocked(metrics: pd.DataFrame, target: float | None) -> dict[str, float]:
    """One run by the simulated clock; NaN in runs made before there was one.

    With a ``target``, an accuracy in 0..1: the round that first reaches it and the seconds until its end (``to_target``; NaN where none
    does), and the rounds and seconds until then or until the end of the run (``spent``).
    """
    time = metrics["simulated_time"] if "simulated_time" in metrics else pd.Series(np.nan, metrics.index)
    summary = {"simulated_time_total": time.iloc[-1]}
    if target is None:
        return summary
    accuracy = metrics["accuracy"] if metrics["accuracy"].notna().any() else metrics["accuracy_own_labels"]
    reached = metrics.index[accuracy >= target]
    last = reached[0] if len(reached) else metrics.index[-1]
    for name, values in (("rounds", metrics["round"]), ("time", time)):
        summary |= {f"{name}_to_target": values[last] if len(reached) else np.nan, f"{name}_spent": values[last]}
    return summary


def columns(table: pd.DataFrame, target: float | None) -> dict[str, Sequence[str]]:
    """The columns of the report's table of times: of all groups, the whole run and, with a ``target``, the way to it."""
    found = {"simulated s": [plain(*pair) for pair in pairs(table, "simulated_time_total")]}
    if target is not None:
        for title, name in (("round", "rounds"), ("simulated s", "time")):
            numbers = zip(pairs(table, f"{name}_to_target"), table[f"{name}_spent_mean"], table["num_reached"], table["num_seeds"])
            found[f"{title} to {100 * target:g} %"] = [
                plain(*pair) if reached == n else "-" if np.isnan(spent) else f"> {digits(spent)} ({reached} of {n})"
                for pair, spent, reached, n in numbers
            ]
    return found


def pairs(table: pd.DataFrame, name: str) -> np.ndarray:  # [groups, 2]
    """Mean and half-width of a figure."""
    return table[[f"{name}_mean", f"{name}_half_width"]].to_numpy(float)


def plain(mean: float, half: float) -> str:
    """``812.4 ± 10.13``; no interval for one seed, and a dash where there is nothing."""
    return "-" if np.isnan(mean) else digits(mean) + ("" if np.isnan(half) else f" ± {digits(half)}")


def digits(value: float) -> str:
    """Four digits, and all before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def legend(target: float | None) -> str:
    """What the columns mean."""
    return LEGEND if target is None else f"{LEGEND}\n{TARGET_LEGEND.format(percent=100 * target)}"
