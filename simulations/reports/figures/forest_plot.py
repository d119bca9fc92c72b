"""The figure of an ablation: every column's difference from the reference, with its interval."""

from pathlib import Path

import numpy as np
import pandas as pd

from simulations.reports.figures.style import COLORS, canvas
from simulations.run_folder.metric_names import TABLE_METRICS


def forest(table: pd.DataFrame, figure: str, reference: str, path_stem: Path | str) -> tuple[Path, Path]:
    """A line for each strategy of one setting: the mean difference from ``reference``, paired by seed, and its 95 % interval.

    An interval, not corrected for their number, that excludes zero has a filled marker. What lies far from all others stands at the axis' end, as a number.

    Args:
        table: of :func:`simulations.experiments.published_table.compare`, one setting's rows.
        figure: which figure's differences.
        reference: the column that they are from.
        path_stem: the file without suffix.

    Returns:
        The PDF and the PNG.
    """
    means, halves = (table[f"{figure}_minus_baseline_{part}"] for part in ("mean", "ci95"))
    kept = table.assign(mean=means, half=halves)[means.notna()]
    low, high = limits(kept["mean"], kept["half"])
    with canvas(0.6 + 0.15 * len(kept), path_stem) as (drawing, paths):
        axes = drawing.subplots()
        axes.axvline(0, color="0.6", linewidth=0.8)
        for place, (mean, half) in enumerate(zip(kept["mean"], kept["half"])):
            if low <= mean <= high:
                filled = COLORS[0] if abs(mean) > half else "white"
                axes.errorbar(
                    mean, place, xerr=half, fmt="o", markersize=3.4, color=COLORS[0], markerfacecolor=filled, elinewidth=1, capsize=1.5
                )
            else:
                text = f"{mean:+.1f}" + ("" if np.isnan(half) else f" ± {half:.1f}")
                edge, side = (low, "left") if mean < low else (high, "right")
                axes.text(edge, place, f"‹ {text}" if side == "left" else f"{text} ›", ha=side, va="center", color=COLORS[0], fontsize=6.5)
        axes.set_yticks(range(len(kept)), kept["strategy"])
        axes.set(xlim=(low, high), ylim=(len(kept) - 0.4, -0.6))
        axes.grid(axis="x", linewidth=0.4, color="0.88")
        axes.set_axisbelow(True)
        drawing.supxlabel(
            f"{TABLE_METRICS[figure]}: points above {reference}\n(95 % interval, uncorrected, paired by seed, {numbers(kept['num_pairs'])})",
            fontsize=7.5,
        )
    return paths


def limits(means: pd.Series, halves: pd.Series) -> tuple[float, float]:
    """The axis: zero and all means, with room for a usual interval; without those that lie farther from the quartiles than twice their distance
    (and four points)."""
    first, third = (means.quantile(share) for share in (0.25, 0.75))
    reach, usual = max(2 * (third - first), 4.0), 0.0 if halves.isna().all() else halves.median()
    near = means[means.between(first - reach, third + reach)]
    low, high = min(0.0, near.min() - usual), max(0.0, near.max() + usual)
    room = 0.04 * max(high - low, 0.1)
    return low - room, high + room


def numbers(pairs: pd.Series) -> str:
    """``n = 5``, or from least to most."""
    least, most = (int(pairs.min()), int(pairs.max())) if len(pairs) else (0, 0)
    return f"n = {most}" if least == most else f"n = {least} to {most}"
