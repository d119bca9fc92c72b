"""Accuracy over time where data drift: curves with the borders of phases, and accuracy by task as a heat map."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulations.reports.figures.legend import legend, legend_height
from simulations.reports.figures.style import NEUTRAL, FigureStyle, band, canvas, limits

MAPS = 3
"""Heat maps that stand side by side."""


def over_time(
    lines: Mapping[str, pd.DataFrame],
    borders: Sequence[int],
    axis_label: str,
    bounds: Mapping[str, float],
    matrices: Mapping[str, np.ndarray],
    path_stem: Path | str | None,
    style: FigureStyle | None = None,
) -> Figure:
    """Accuracy by round with a dotted border before each new phase, and below it the accuracy by task after each task.

    Args:
        lines: by label, a curve of :func:`simulations.reports.curves.curve`.
        borders: the first round of each phase but the first.
        axis_label: of the vertical axis.
        bounds: by label, the final accuracy in percent of the same line without drift, drawn as a mark at the right end.
        matrices: by label, mean ``a[t][j]`` in percent [T, T]; empty where classes do not arrive as tasks.
        path_stem: the files without suffix; None writes nothing.
        style: of the figure.
    """
    style = (style or FigureStyle()).with_labels(lines)
    seeds = {label: int(curve["n"].max()) for label, curve in lines.items() if len(curve)}
    num_rows = -(-len(matrices) // MAPS)
    side = style.width / max(1, min(MAPS, len(matrices)))
    map_height = min(side, 1.5 * style.text)
    top = max(style.panel_height(), 1.45 * style.text)
    note = 0.16 * style.text * bool(bounds)
    height = top + 0.45 * style.text + num_rows * (map_height + 0.35 * style.text) + legend_height(seeds, style) + note
    with canvas(height, path_stem, style) as figure:
        rows = figure.add_gridspec(1 + num_rows, 1, height_ratios=[top + 0.45 * style.text, *[map_height + 0.35 * style.text] * num_rows])
        axes = figure.add_subplot(rows[0])
        _curves(axes, lines, borders, bounds, style)
        axes.set_ylabel(f"Accuracy (%),\n{axis_label}")
        axes.set_xlabel("Server round")
        items = list(matrices.items())
        for row in range(num_rows):
            shown = items[row * MAPS : (row + 1) * MAPS]
            cells = rows[row + 1].subgridspec(1, len(shown))
            for place, (label, matrix) in enumerate(shown):
                _heat_map(figure.add_subplot(cells[place]), matrix, label, style, place == 0)
        legend(figure, seeds, style)
    return figure


def _curves(axes: Axes, lines: Mapping[str, pd.DataFrame], borders: Sequence[int], bounds: Mapping[str, float], style: FigureStyle) -> None:
    """All curves, the borders of phases, and the results without drift."""
    ends = []
    for label, values in lines.items():
        if len(values):
            look, step = style.line(label), max(1, len(values) // 7)
            axes.plot(values["x"], values["mean"], **look, zorder=3, markevery=(int(style.slots[label] * 0.382 * step) % step, step))
            ends += band(axes, {str(name): values[name] for name in values}, look["color"], style, 0, 100)
    limits(axes, [*ends, *((value - 6, value + 3) for value in bounds.values())], whole=True)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    for begin in borders:
        axes.axvline(begin - 0.5, color=NEUTRAL, linestyle=":", linewidth=0.8 * style.text, zorder=1)
    for label, value in bounds.items():
        look = style.line(label)
        axes.axhline(
            value, color=look["color"], linestyle=look["linestyle"], linewidth=0.7 * style.text, alpha=0.6, zorder=2, label="_bound"
        )
    if bounds:
        lowest = min(bounds.values())
        axes.annotate(
            "joint training, final", (0.99, lowest), xycoords=("axes fraction", "data"), xytext=(0, -2), textcoords="offset points",
            va="top", ha="right", fontsize=style.font_size - 1, color=NEUTRAL,
        )  # fmt: skip


def _heat_map(axes: Axes, matrix: np.ndarray, label: str, style: FigureStyle, first: bool) -> None:
    """The accuracy on task j (columns) after task t (rows), with its number in each cell."""
    number = len(matrix)
    axes.imshow(np.ma.masked_invalid(matrix), cmap="cividis", vmin=0, vmax=100, aspect="auto")
    size = min(style.font_size - 1, 42.0 / number)
    for after, on in np.argwhere(np.isfinite(matrix)):
        value = matrix[after, on]
        axes.text(on, after, f"{value:.0f}", ha="center", va="center", fontsize=size, color="black" if value > 55 else "white")
    axes.set_xticks(range(number), [str(task + 1) for task in range(number)])
    axes.set_yticks(range(number), [str(task + 1) for task in range(number)])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"{label}, accuracy (%)", pad=3)
    axes.set_xlabel("on task")
    if first:
        axes.set_ylabel("after task")
