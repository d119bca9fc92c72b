"""Figures of convergence: accuracy against the round, the traffic or the simulated time, of one setting or of several side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedkd.errors import require
from simulations.reports.curves import X_AXES
from simulations.reports.figures.legend import legend, legend_height
from simulations.reports.figures.style import PAGE, FigureStyle, band, canvas, curve_lines, limits
from simulations.reports.metrics import CURVES

Lines = Mapping[str, Mapping[str, pd.DataFrame]]
"""By label and column of ``metrics.csv``, a curve of :func:`simulations.reports.curves.curve`."""

SIDE_BY_SIDE = 5.5
"""Inches at 7 points from which on the metrics of one setting stand side by side."""


MARKER = 0.03
"""Half a marker's height, as a fraction of the axis."""


def convergence(
    lines: Lines,
    path_stem: Path | str | None,
    along: str = "rounds",
    style: FigureStyle | None = None,
    axis_labels: Mapping[str, str] = CURVES,
) -> Figure:
    """Accuracy against the round, the traffic or the simulated time: means over seeds and their intervals.

    The vertical axis follows the means. It cuts wide bands, and the lowest values of the first tenth of long curves.

    Args:
        lines: the curves by label and column. A label whose curves are empty keeps its look.
        path_stem: the files without suffix; None writes nothing.
        along: of :data:`simulations.reports.curves.X_AXES`.
        style: of the figure.
        axis_labels: of the vertical axes, by column; a panel each.

    Raises:
        ConfigError: there is no accuracy to draw.
    """
    return panels({"": lines}, path_stem, along, style, axis_labels)


def panels(
    settings: Mapping[str, Lines],
    path_stem: Path | str | None,
    along: str = "rounds",
    style: FigureStyle | None = None,
    axis_labels: Mapping[str, str] = CURVES,
    width: float | None = None,
) -> Figure:
    """The same for several settings: a column of panels per setting, a row per metric, and one legend.

    Args:
        settings: the curves by setting.
        path_stem: as in :func:`convergence`.
        along: as in :func:`convergence`.
        style: of the figure.
        axis_labels: of the vertical axes, by column.
        width: in inches; None for that of the style, and for both columns of a paper with several settings.

    Raises:
        ConfigError: there is no accuracy to draw.
    """
    every = [(label, curves) for lines in settings.values() for label, curves in lines.items()]
    columns = [column for column in axis_labels if any(len(curves[column]) for _, curves in every)]
    require(bool(columns), "lines", "must hold an evaluated round", [label for label, _ in every])
    style = (style or FigureStyle()).with_labels(label for label, _ in every)
    width = (style.width if len(settings) == 1 else max(PAGE, style.width)) if width is None else width
    seeds = _seeds(every)
    beside = len(settings) == 1 and len(columns) > 1 and width / style.text >= SIDE_BY_SIDE
    shape = (1, len(columns)) if beside else (len(columns), len(settings))
    height = max(style.panel_height(), 1.2 * style.text) if shape[1] == 1 else _panel_height(width / shape[1], style)
    total = (0.4 if shape[1] == 1 or beside else 0.58) * style.text + height * shape[0] + legend_height(seeds, style, width)
    with canvas(total, path_stem, style, width) as figure:
        axes_of = figure.subplots(*shape, sharex=len(settings) == 1 and not beside, squeeze=False)
        for place, (setting, lines) in enumerate(settings.items()):
            for row, column in enumerate(columns):
                axes = axes_of[0, row] if beside else axes_of[row, place]
                drawn = {label: curves[column] for label, curves in lines.items()}
                _draw(axes, drawn, style)
                _label(axes, f"Accuracy (%),\n{axis_labels[column]}" if beside or place == 0 else "", along, shape[1])
                axes.tick_params(labelbottom=beside or row == len(columns) - 1)
                if row == 0 and setting:
                    axes.set_title(setting, pad=3)
        if len(settings) > 1:
            for row_of_axes in axes_of:
                _share_limits(row_of_axes)
        for axes in axes_of.flat:
            _whole_markers(axes)
        figure.align_ylabels()
        for axes in axes_of[-1]:
            axes.set_xlabel(X_AXES[along][0])
        legend(figure, seeds, style, width=width)
    return figure


def _share_limits(panels: Sequence[Axes]) -> None:
    """Give panels side by side the same vertical axis, so that settings can be compared."""
    ends = [axes.get_ylim() for axes in panels]
    for place, axes in enumerate(panels):
        axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
        axes.tick_params(labelleft=place == 0)


def _whole_markers(axes: Axes) -> None:
    """Leave out the markers that the lower end of the axis would cut."""
    low, high = axes.get_ylim()
    for line in curve_lines(axes):
        offset, step = cast("tuple[int, int]", line.get_markevery())  # as the line was drawn
        heights = np.asarray(line.get_ydata(), float)
        line.set_markevery([place for place in range(offset, len(heights), step) if heights[place] >= low + MARKER * (high - low)])


def _seeds(every: Sequence[tuple[str, Mapping[str, pd.DataFrame]]]) -> dict[str, int]:
    """The number of seeds of each label that has a curve."""
    seeds: dict[str, int] = {}
    for label, curves in every:
        for one in curves.values():
            if len(one):
                seeds[label] = max(seeds.get(label, 0), int(one["n"].max()))
    return seeds


def _panel_height(width: float, style: FigureStyle) -> float:
    """Inches of a panel of this width."""
    return float(np.clip(0.6 * width, 1.2 * style.text, 2.3 * style.text))


def _draw(axes: Axes, curves: Mapping[str, pd.DataFrame], style: FigureStyle) -> None:
    """All curves of one panel, and the limits of its axis."""
    ends = []
    for label, values in curves.items():
        if len(values):
            ends += _line(axes, values, style, label)
    if axes.lines:
        limits(axes, ends)


def _line(axes: Axes, values: pd.DataFrame, style: FigureStyle, label: str) -> list[tuple[float, float]]:
    """Draw one mean and its band, in percent, and return the ends of the band. Markers of different labels stand at different points."""
    look = style.line(label)
    step = max(1, len(values) // 7)
    axes.plot(values["x"], values["mean"], **look, zorder=3, markevery=(int(style.slots[label] * 0.382 * step) % step, step))
    return band(axes, {str(name): values[name] for name in values}, look["color"], style, 0, 100)


def _label(axes: Axes, text: str, along: str, columns: int) -> None:
    """The label of the vertical axis, and few ticks."""
    axes.set_ylabel(text)
    locator = MaxNLocator(7 if columns == 1 else 4, integer=along == "rounds", steps=[1, 2, 5, 10], min_n_ticks=1)
    axes.xaxis.set_major_locator(locator)
