"""The figure of a partition: training examples of each class and client."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedkd.errors import require
from fedkd.metrics.label_skew import describe_skew
from simulations.reports.figures.legend import line_length
from simulations.reports.figures.style import NEUTRAL, FigureStyle, canvas


def label_distribution(counts: np.ndarray, path_stem: Path | str | None, style: FigureStyle | None = None) -> Figure:  # [K, C]
    """How many training examples of each class each client has. The area of a circle is proportional to the count.

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
        for axis, ticks in ((axes.xaxis, 12), (axes.yaxis, int(height / (0.13 * scale)))):
            axis.set_major_locator(MaxNLocator(min(ticks, 20), integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        client, label = np.nonzero(counts)
        _circles(axes, client, label, counts[client, label], diameter)
        skew = describe_skew(counts)
        text = skew[0].upper() + skew[1:]
        small = min(0.85, 1.1 * line_length(style, width) / len(text))
        figure.text(left / style.width, 1 - 0.05 * scale / total, text, ha="left", va="top", fontsize=small * style.font_size)
    return figure


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
