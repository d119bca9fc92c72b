"""A page that compares: panels of circles, client by class, and strips of images, client by client. Two columns wide."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulations.reports.figures.style import COLORS, PAGE, canvas

SHOWN = 20
"""Clients of a strip."""

ACROSS, CELL, TOP, LEFT, GAP = 5, 1.0, 0.36, 0.42, 0.1
"""Panels in a row; inches: their height, what stands above each, left of the first, between them."""

HEAD, ROW = 0.94, 0.42
"""Inches: what a strip is called, and its height."""

KEY = (
    "d: mean distance of two clients' label distributions, 0 to 1.   c: effective classes of a client.   "
    "●: examples in the largest circle; areas are in proportion."
)

SAID = (
    "One image as it is and as each client sees it (under colour: its brightness); "
    "label_noise: each client's first image and its label, wrong ones framed."
)


@dataclass(frozen=True)
class Panel:
    """Examples by client and class [K, C], and what is written above."""

    title: str
    note: str
    counts: np.ndarray


@dataclass(frozen=True)
class Strip:
    """One image as it is and as clients see it, each [H, W, C] in 0..1, what is written under each, and which texts are wrong labels."""

    title: str
    images: Sequence[np.ndarray]
    texts: Sequence[str]
    wrong: frozenset[int] = frozenset()


def page(panels: Sequence[Panel], strips: Sequence[Strip], path_stem: Path | str) -> tuple[Path, Path]:
    """Draw the panels, five in a row, and the strips below them.

    Returns:
        The PDF and the PNG.
    """
    rows = -(-len(panels) // ACROSS)
    above = rows * (CELL + TOP) + 0.84
    height = above + ROW * len(strips) + 0.06
    with canvas(height, path_stem, layout="none", width=PAGE) as (figure, paths):
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
        for number, one in enumerate(strips):
            _strip(figure, one, above + ROW * number, numbered=number == 0)
        for text, top in ((KEY, above - 0.35), (SAID, above - 0.22)):
            figure.text(0.06 / PAGE, 1 - top / height, text, fontsize=6, va="bottom")
    return paths


def _note(one: Panel) -> str:
    """What stands under a panel's title."""
    return f"{one.note}   ● {one.counts.max():,}"


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at so many inches from the left and from the top."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def _circles(axes: Axes, held: np.ndarray, diameter: float) -> None:  # [K, C]
    """Circles whose area is proportional to the count, large ones ``diameter`` points wide, and the largest at most twice that."""
    client, label = np.nonzero(held)
    area = diameter**2 / max(np.quantile(held[held > 0], 0.9), held.max() / 4) if held.any() else 0
    axes.scatter(client, label, s=held[client, label] * area, color=COLORS[0], alpha=0.85, linewidths=0, clip_on=False)
    axes.set(xlim=(-0.7, held.shape[0] - 0.3), ylim=(-0.7, held.shape[1] - 0.3))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def _strip(figure: Figure, one: Strip, top: float, numbered: bool) -> None:
    """A row of images, what each client got under it, and for the first row the clients' numbers above it."""
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
