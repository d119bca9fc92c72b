"""The page on data heterogeneity: label distributions of several partitions, and images under several shifts. Two columns wide."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulations.reports.figures.style import COLORS, NEUTRAL, PAGE, canvas, figure_paths

SHOWN = 20
"""Clients in a row of images."""

ACROSS, CELL, TOP, LEFT, GAP = 5, 1.0, 0.36, 0.42, 0.1
"""Panels in a row; in inches: the height of a panel, the space above it, left of the first, and between panels."""

HEAD, ROW = 0.94, 0.42
"""Inches of the title of a row of images, and of its height."""

CIRCLES_LEGEND = (
    "d: mean distance of two clients' label distributions, 0 to 1.   c: effective classes of a client.   "
    "●: examples in the largest circle; areas are in proportion."
)

IMAGES_LEGEND = (
    "The original image and the image that each client sees (color jitter: its brightness below). "
    "label_noise: each client's first image and its label; wrong labels are framed."
)


@dataclass(frozen=True)
class Panel:
    """A label distribution.

    Args:
        title: above the panel.
        note: below the title.
        counts: examples by client and class [K, C].
    """

    title: str
    note: str
    counts: np.ndarray


@dataclass(frozen=True)
class Strip:
    """A row of images.

    Args:
        title: left of the row.
        images: the original and one per client, each [H, W, C] in 0..1.
        texts: below the images.
        wrong: positions of images with a wrong label.
    """

    title: str
    images: Sequence[np.ndarray]
    texts: Sequence[str]
    wrong: frozenset[int] = frozenset()


def page(panels: Sequence[Panel], strips: Sequence[Strip], path_stem: Path | str) -> list[Path]:
    """Draw the panels, five in a row, and the rows of images below them. Returns the PDF and the PNG."""
    rows = -(-len(panels) // ACROSS)
    above = rows * (CELL + TOP) + 0.84
    height = above + ROW * len(strips) + 0.06
    with canvas(height, path_stem, layout=None, width=PAGE) as figure:
        width = (PAGE - LEFT - 0.06 - GAP * (ACROSS - 1)) / ACROSS
        for number, one in enumerate(panels):
            row, column = divmod(number, ACROSS)
            top = row * (CELL + TOP) + TOP
            axes = _axes(figure, LEFT + column * (width + GAP), top, width, CELL)
            _circles(axes, one.counts, min(72 * width / len(one.counts), 72 * CELL / one.counts.shape[1]))
            axes.set_title(one.title, loc="left", fontsize=7, fontweight="bold", pad=11)
            axes.text(0, 1.02, _note(one), transform=axes.transAxes, fontsize=6, va="bottom")
            axes.tick_params(labelleft=column == 0, labelbottom=number + ACROSS >= len(panels))
            axes.set(ylabel="Class" if column == 0 else "", xlabel="Client" if number + ACROSS >= len(panels) else "")
        for number, strip in enumerate(strips):
            _strip(figure, strip, above + ROW * number, numbered=number == 0)
        for text, top in ((CIRCLES_LEGEND, above - 0.35), (IMAGES_LEGEND, above - 0.22)):
            figure.text(0.06 / PAGE, 1 - top / height, text, fontsize=6, va="bottom")
    return figure_paths(path_stem)


def _note(one: Panel) -> str:
    """The text below a panel's title."""
    return f"{one.note}   ● {one.counts.max():,}"


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at this distance from the left and from the top, in inches."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def _circles(axes: Axes, counts: np.ndarray, diameter: float) -> None:  # [K, C]
    """Circles whose area is proportional to the count; the 90th percentile is ``diameter`` points wide, the largest at most twice that."""
    client, label = np.nonzero(counts)
    area = diameter**2 / max(np.quantile(counts[counts > 0], 0.9), counts.max() / 4) if counts.any() else 0
    axes.scatter(client, label, s=counts[client, label] * area, color=NEUTRAL, alpha=0.85, linewidths=0, clip_on=False)
    axes.set(xlim=(-0.7, counts.shape[0] - 0.3), ylim=(-0.7, counts.shape[1] - 0.3))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def _strip(figure: Figure, one: Strip, top: float, numbered: bool) -> None:
    """A row of images, the text of each client below, and for the first row the clients' numbers above."""
    across, down = figure.get_size_inches()
    side = (PAGE - HEAD - 0.1) / (SHOWN + 1)
    figure.text(0.06 / across, 1 - (top + side / 2) / down, one.title, fontsize=7, fontweight="bold", va="center")
    for place, (image, text) in enumerate(zip(one.images, one.texts)):
        left = HEAD + place * side + (0.06 if place else 0)
        axes = _axes(figure, left, top, side * 0.93, side * 0.93)
        axes.imshow(image, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=place in one.wrong, linewidth=1.2, color=COLORS[1])
        bold = "bold" if place in one.wrong else "normal"
        axes.set_xlabel(text, fontsize=5, labelpad=1.5, fontweight=bold)
        if numbered:
            axes.set_title(f"{place - 1}" if place else "Client", fontsize=6, pad=1.5)
