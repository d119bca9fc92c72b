"""The figure of a partition: training examples of each class and client."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedkd.errors import require
from fedkd.metrics.label_skew import describe_skew
from simulations.reports.figures.legend import line_length
from simulations.reports.figures.style import NEUTRAL, FigureStyle, canvas

MAX_CIRCLES_CLIENTS = 400
"""Clients that have a column of circles each. More clients are drawn as shades, several of them in a column."""

MAX_COLUMNS = 250
"""Columns of shades."""


def label_distribution(counts: np.ndarray, path_stem: Path | str | None, style: FigureStyle | None = None) -> Figure:  # [K, C]
    """How many training examples of each class each client has. The area of a circle is proportional to the count.

    With more than :data:`MAX_CIRCLES_CLIENTS` clients the figure is an image: clients are sorted by their most frequent class, and a column
    is the mean of several neighbors. The text says so.

    Args:
        counts: examples by client and class [K, C], >= 0; nothing is drawn where the count is 0.
        path_stem: the files without suffix; None writes nothing.
        style: of the figure.

    Raises:
        ConfigError: ``counts`` is no matrix of counts, or holds no example.
    """
    counts = np.asarray(counts)
    require(counts.ndim == 2 and counts.size > 0, "counts", "must be a matrix [clients, classes]", counts.shape)
    require(counts.min() >= 0 and counts.max() > 0, "counts", "must be >= 0 and not all 0", (counts.min(), counts.max()))
    style = style or FigureStyle()
    scale, (num_clients, num_classes) = style.text, counts.shape
    left, right, top, bottom = 0.38 * scale, 0.06 * scale, 0.40 * scale, 0.36 * scale  # inches around the axes
    width = style.width - left - right
    height = float(np.clip(num_classes * min(width / num_clients, 0.17 * scale), 1.1 * scale, 6.5))
    total = height + top + bottom
    diameter = 72 * 0.96 * min(height / num_classes, max(width / num_clients, 0.07))  # points; crowded circles may overlap a little
    with canvas(total, path_stem, style, layout=None) as figure:
        axes = figure.add_axes((left / style.width, bottom / total, width / style.width, height / total))
        axes.set(xlim=(-0.6, num_clients - 0.4), ylim=(-0.6, num_classes - 0.4), xlabel="Client", ylabel="Class")
        skew = describe_skew(counts)
        text = skew[0].upper() + skew[1:]
        small = min(0.85, 1.1 * line_length(style, width) / len(text))
        for axis, ticks in ((axes.xaxis, 12), (axes.yaxis, int(height / (0.13 * scale)))):
            axis.set_major_locator(MaxNLocator(min(ticks, 20), integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        if num_clients > MAX_CIRCLES_CLIENTS:
            per_column = _shades(figure, axes, counts, small * style.font_size)
            caption = f"Client, sorted by most frequent class; a column: mean of {per_column}"
            axes.set_xlabel(caption, fontsize=min(0.85, 1.1 * line_length(style, width) / len(caption)) * style.font_size)
        else:
            client, label = np.nonzero(counts)
            _circles(axes, client, label, counts[client, label], diameter)
        figure.text(left / style.width, 1 - 0.05 * scale / total, text, ha="left", va="top", fontsize=small * style.font_size)
    return figure


def sorted_clients(counts: np.ndarray) -> np.ndarray:  # [K, C] -> [K]
    """The clients by their most frequent class, and of one class those with its largest share first. Clients without examples are last."""
    sizes = counts.sum(axis=1)
    share = counts.max(axis=1) / np.maximum(sizes, 1)
    return np.lexsort((-share, counts.argmax(axis=1), sizes == 0))


def _shades(figure: Figure, axes: Axes, counts: np.ndarray, font_size: float) -> int:
    """Mean counts of neighboring clients as an image, with a scale above it. Returns the number of clients in a column."""
    num_clients, num_classes = counts.shape
    per_column = -(-num_clients // MAX_COLUMNS)
    begins = np.arange(0, num_clients, per_column)
    sums = np.add.reduceat(counts[sorted_clients(counts)].astype(float), begins, axis=0)  # [columns, C]
    means = sums / np.diff([*begins, num_clients])[:, None]
    extent = (-0.5, num_clients - 0.5, -0.5, num_classes - 0.5)
    look: dict[str, Any] = {"cmap": "Greys", "norm": PowerNorm(0.5, 0, means.max())}  # the square root, so that small counts are seen
    image = axes.imshow(means.T, origin="lower", aspect="auto", interpolation="nearest", extent=extent, **look)
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    scale = axes.inset_axes((0.66, 1.03, 0.34, 0.04))
    bar = figure.colorbar(image, cax=scale, orientation="horizontal", ticks=[0, *round_sizes(max(1, int(means.max())))[-1:]])
    bar.ax.xaxis.set_ticks_position("top")
    bar.ax.tick_params(labelsize=font_size, length=1.5, pad=1)
    axes.text(0.64, 1.02, "Training examples:", transform=axes.transAxes, ha="right", va="bottom", fontsize=font_size)
    return per_column


def _circles(axes: Axes, x: np.ndarray, y: np.ndarray, counts: np.ndarray, diameter: float) -> None:
    """Circles whose area is proportional to ``counts``, the largest ``diameter`` points wide, and a legend of sizes above them."""
    look: dict[str, Any] = {"color": NEUTRAL, "alpha": 0.85, "linewidths": 0}
    area = diameter**2 / counts.max()
    axes.scatter(x, y, s=counts * area, clip_on=False, **look)
    handles: list[Artist] = [Line2D([], [], linestyle="none", label="Training examples:")]
    handles += [axes.scatter([], [], s=size * area, label=f"{size:,}", **look) for size in round_sizes(int(counts.max()))]
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


def round_sizes(largest: int) -> list[int]:
    """Three counts or fewer for a legend, each 1, 2 or 5 times a power of ten, up to ``largest``."""
    steps = [m * 10**e for e in range(len(str(largest))) for m in (1, 2, 5) if m * 10**e <= largest]
    return sorted({steps[-1], steps[max(0, len(steps) - 3)], steps[max(0, len(steps) - 5)]})
