"""The figure of an ablation: the difference of every strategy from the baseline, with its interval."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simulations.reports.figures.legend import seeds_text, wrapped
from simulations.reports.figures.style import FigureStyle, canvas, grid
from simulations.run_folder.metric_names import TABLE_METRICS

COLOR = "black"
"""The color of all marks: rows are told apart by their labels."""


def forest(table: pd.DataFrame, metric: str, baseline: str, path_stem: Path | str | None, style: FigureStyle | None = None) -> Figure:
    """A line per strategy of one setting: the mean difference from the baseline, paired by seed, and its 95 % interval.

    A filled marker means that the interval, which is not corrected for the number of strategies, excludes zero. A value far from the others
    is printed at the end of the axis.

    Args:
        table: of :func:`simulations.experiments.published_table.compare`, the rows of one setting.
        metric: of the differences.
        baseline: the strategy that they are taken from.
        path_stem: the files without suffix; None writes nothing.
        style: of the figure.
    """
    style = style or FigureStyle()
    means, halves = (table[f"{metric}_minus_baseline_{part}"] for part in ("mean", "ci95"))
    kept = table.assign(mean=means, half=halves)[means.notna()]
    low, high = limits(kept["mean"], kept["half"])
    size, scale = 3.4 * style.text, style.text
    with canvas((0.6 + 0.15 * len(kept)) * scale, path_stem, style) as figure:
        axes = figure.subplots()
        axes.axvline(0, color="0.6", linewidth=0.8 * scale)
        for row, (mean, half) in enumerate(zip(kept["mean"].tolist(), kept["half"].tolist())):
            if low <= mean <= high:
                filled = COLOR if abs(mean) > half else "white"
                marks = {"markersize": size, "color": COLOR, "markerfacecolor": filled}
                axes.errorbar(mean, row, xerr=half, fmt="o", elinewidth=scale, capsize=1.5 * scale, **marks)  # type: ignore[arg-type]
            else:
                text = f"{mean:+.1f}" + ("" if np.isnan(half) else f" ± {half:.1f}")
                left = mean < low
                edge, shown = (low, f"‹ {text}") if left else (high, f"{text} ›")
                axes.text(edge, row, shown, ha="left" if left else "right", va="center", color=COLOR, fontsize=style.font_size - 0.5)
        axes.set_yticks(range(len(kept)), kept["strategy"].tolist())
        axes.set(xlim=(low, high), ylim=(len(kept) - 0.4, -0.6))
        grid(axes, "x")
        pairs = seeds_text([int(number) for number in kept["num_pairs"]] or [0])
        figure.supxlabel(
            wrapped(f"{TABLE_METRICS[metric]}: points above {baseline}", style)
            + "\n"
            + wrapped(f"(95 % interval, uncorrected, paired by seed, {pairs})", style),
            fontsize=style.font_size + 0.5,
        )
    return figure


def limits(means: pd.Series, halves: pd.Series) -> tuple[float, float]:
    """The ends of the axis: zero and all means, with room for a median interval.

    Means that are farther from the quartiles than twice the distance between these, and than four points, lie outside.
    """
    first, third = (float(means.quantile(fraction)) for fraction in (0.25, 0.75))
    reach, usual = max(2 * (third - first), 4.0), 0.0 if halves.isna().all() else float(halves.median())
    near = means[means.between(first - reach, third + reach)]
    low, high = min(0.0, near.min() - usual), max(0.0, near.max() + usual)
    room = 0.04 * max(high - low, 0.1)
    return low - room, high + room
