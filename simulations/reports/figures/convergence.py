"""The figures of a report, as vector PDF and as PNG, one column of a two-column paper wide.

They take plain arrays and data frames, and draw by Matplotlib's objects, so that nothing global is touched.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedkd.errors import require
from fedkd.metrics.label_skew import describe_skew
from simulations.reports.figures.style import COLORS, WIDTH, canvas, legend, legend_shape, legend_texts, limits, line_style, rows
from simulations.reports.statistics import interval
from simulations.reports.summary import ALONG, PANELS


def convergence(
    lines: Mapping[str, Mapping[str, pd.DataFrame]], path_stem: Path | str, along: str = "rounds", kind: str = "t"
) -> tuple[Path, Path]:
    """Accuracy in the balanced test, and on the clients' own labels, against the communication round, bytes or simulated time.

    Lines are means over seeds, bands their 95 % intervals (none for one seed); the axis follows the means, and cuts a wider band and what of
    the first tenth of long curves lies lower than all that follows.

    Args:
        lines: by label, a frame of :func:`simulations.reports.summary.curve` for each column of :data:`simulations.reports.summary.PANELS`; one without any
            numbers keeps its place, so that the others look the same in all figures.
        path_stem: the file without suffix.
        along: of :data:`simulations.reports.summary.ALONG`.
        kind: of the interval.

    Returns:
        The PDF and the PNG. A ``ValueError`` is raised without any accuracy to draw.
    """
    columns = [column for column in PANELS if any(len(frames[column]) for frames in lines.values())]
    require(bool(columns), "lines", "must hold an evaluated round", list(lines))
    found = {label: [frame for frame in frames.values() if len(frame)] for label, frames in lines.items()}
    numbers = {label: range(int(max(frame["n"].max() for frame in frames))) for label, frames in found.items() if frames}
    with canvas(0.4 + 1.4 * len(columns) + 0.14 * (1 + legend_shape(numbers)[0]), path_stem) as (figure, paths):
        panels = np.atleast_1d(figure.subplots(len(columns), 1, sharex=True))
        for axes, column in zip(panels, columns, strict=True):
            for style, frames in enumerate(lines.values()):
                _line(axes, frames[column], style)
            limits(axes)
            axes.set_ylabel(f"Accuracy (%),\n{PANELS[column]}")
        figure.align_ylabels()
        panels[-1].set_xlabel(ALONG[along][0])
        panels[-1].xaxis.set_major_locator(MaxNLocator(7, integer=along == "rounds", steps=[1, 2, 5, 10], min_n_ticks=1))
        legend(figure, numbers, {label: style for style, label in enumerate(lines)}, kind)
    return paths


def spread(lines: Mapping[str, pd.DataFrame], path_stem: Path | str, kind: str = "t") -> tuple[Path, Path]:
    """Each seed's result by strategy, the runs of one seed joined by a grey line, beside the mean and its 95 % interval.

    Args:
        lines: by label, a frame with a row a seed (its index): ``accuracy`` and ``local_test_accuracy`` in 0..1, or NaN.
        path_stem: the file without suffix.
        kind: of the interval.

    Returns:
        The PDF and the PNG.
    """
    columns = [column for column in PANELS if any(frame[column].notna().any() for frame in lines.values())]
    require(bool(columns), "lines", "must hold a result", list(lines))
    with canvas(0.5 + 0.26 * len(lines), path_stem) as (figure, paths):
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=True):
            values = pd.DataFrame({label: 100 * frame[column] for label, frame in lines.items()})
            axes.plot(values.to_numpy().T, range(len(lines)), color="0.8", linewidth=0.5, zorder=1)
            for y, (_, column_values) in enumerate(values.items()):
                _spread(axes, column_values.dropna().to_numpy(), y, kind)
            axes.set_xlabel(f"Accuracy (%),\n{PANELS[column]}")
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            axes.grid(axis="x", linewidth=0.4, color="0.88")
        rows(panels[0], legend_texts({label: list(frame.index) for label, frame in lines.items()}))
    return paths


def _spread(axes: Axes, values: np.ndarray, y: int, kind: str) -> None:  # [n]
    """The seeds of one label as small dots, the mean as its marker, the interval as a bar."""
    if not len(values):
        return
    style_of = line_style(y)
    mean, low, high = interval(values, kind)
    axes.plot(values, np.full(len(values), y), ".", color=style_of["color"], markersize=2.5, alpha=0.6, zorder=2)
    if len(values) > 1:
        axes.plot([low, high], [y + 0.22] * 2, color=style_of["color"], linewidth=1.1, zorder=2)
    axes.plot(mean, y + 0.22, color=style_of["color"], marker=style_of["marker"], markersize=3.2, markerfacecolor="white", zorder=3)


def partition(counts: np.ndarray, path_stem: Path | str) -> tuple[Path, Path]:  # [K, C]
    """How many training examples of each class each client holds: a circle's area is proportional to the count; the skew in numbers.

    Args:
        counts: examples by client and class [K, C], >= 0; nothing is drawn where it is 0.
        path_stem: the file without suffix.

    Returns:
        The PDF and the PNG.

    Raises:
        ConfigError: if ``counts`` is no matrix of counts, or holds no example at all.
    """
    counts = np.asarray(counts)
    require(counts.ndim == 2 and counts.size > 0, "counts", "must be a matrix [clients, classes]", counts.shape)
    require(counts.min() >= 0 and counts.max() > 0, "counts", "must be >= 0 and not all 0", (counts.min(), counts.max()))
    num_clients, num_classes = counts.shape
    left, right, top, bottom = 0.38, 0.06, 0.40, 0.36  # inches around the axes
    width = WIDTH - left - right
    height = float(np.clip(num_classes * min(width / num_clients, 0.17), 1.1, 6.5))
    total = height + top + bottom
    diameter = 72 * 0.96 * min(height / num_classes, max(width / num_clients, 0.07))  # points; crowded circles may overlap a little
    with canvas(total, path_stem, layout="none") as (figure, paths):
        axes = figure.add_axes((left / WIDTH, bottom / total, width / WIDTH, height / total))
        axes.set(xlim=(-0.6, num_clients - 0.4), ylim=(-0.6, num_classes - 0.4), xlabel="Client", ylabel="Class")
        for axis, ticks in ((axes.xaxis, 12), (axes.yaxis, int(height / 0.13))):
            axis.set_major_locator(MaxNLocator(min(ticks, 20), integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        client, label = np.nonzero(counts)
        _circles(axes, client, label, counts[client, label], diameter)
        said = describe_skew(counts)
        figure.text(left / WIDTH, 1 - 0.05 / total, said[0].upper() + said[1:], ha="left", va="top", fontsize="small")
    return paths


def _circles(axes: Axes, x: np.ndarray, y: np.ndarray, counts: np.ndarray, diameter: float) -> None:
    """Circles whose area is proportional to ``counts``, the largest ``diameter`` points wide, and a legend of sizes above them."""
    look = {"color": COLORS[0], "alpha": 0.8, "linewidths": 0}
    area = diameter**2 / counts.max()
    axes.scatter(x, y, s=counts * area, **look)
    handles = [Line2D([], [], linestyle="none", label="Training examples:")]
    handles += [axes.scatter([], [], s=size * area, label=f"{size:,}", **look) for size in _round_sizes(int(counts.max()))]
    axes.legend(
        handles=handles,
        ncols=len(handles),
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        borderpad=0.2,
        borderaxespad=0.1,
        handletextpad=0.3,
        handlelength=1.2,
        columnspacing=0.8,
    )


def _line(axes: Axes, values: pd.DataFrame, style: int) -> None:
    """One mean and its band, in percent."""
    if values.empty:  # a strategy without a global model
        return
    step = max(1, len(values) // 7)
    axes.plot(values["x"], values["mean"], **line_style(style), zorder=3, markevery=(int(style * 0.382 * step) % step, step))
    if values["n"].max() > 1:
        low, high = np.clip(values["low"], 0, 100), np.clip(values["high"], 0, 100)
        axes.fill_between(values["x"], low, high, color=COLORS[style % len(COLORS)], alpha=0.16, linewidth=0)


def _round_sizes(largest: int) -> list[int]:
    """Three counts or fewer for the legend, 1, 2 or 5 times a power of ten, spread below ``largest``."""
    steps = [m * 10**e for e in range(len(str(largest))) for m in (1, 2, 5) if m * 10**e <= largest]
    return sorted({steps[-1], steps[max(0, len(steps) - 3)], steps[max(0, len(steps) - 5)]})
