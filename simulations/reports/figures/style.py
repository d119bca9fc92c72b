"""How figures look: as wide as a column of a paper, readable in grayscale and by color-blind readers.

Every strategy has one color, one dash pattern and one marker, the same in all figures of a report.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

WIDTH = 3.4
"""Inches of one column of a two-column paper."""

PAGE = 7.1
"""Inches of both columns and the gap between them."""

FONT_SIZE = 7.0
"""Points of the text."""

DPI = 300
"""Dots per inch of PNG files."""

LONG = 30
"""Points from which on the first tenth of a curve, where accuracy rises steeply, may lie below the axis."""

COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colors by Okabe and Ito, without the faint yellow."""

DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)), (0, (9, 2)), (0, (3, 1.2, 1, 1.2, 1, 1.2)))
"""Dash patterns of lines."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Markers of lines."""


NEUTRAL = "0.35"
"""The gray of marks that belong to no strategy."""

SLOTS = {
    name: slot
    for slot, name in enumerate(
        ("FedAvg", "FedGen", "FedProx", "FedDistill+", "FedEnsemble", "SCAFFOLD", "MOON", "FedNTD", "FedGKD", "FedProto", "FedMD", "FedDF",
         "FedDFusion", "DENSE", "FedFTG", "FedDistill", "FedGen (paper)", "FedGen (head)", "FedBN", "FedPer", "FedRep", "FedBABU",
         "FedDyn", "FedNova", "FedLC", "FedSAM", "FedTGP", "FedGH",
         "Ditto", "FedRoD", "FML", "FedKD", "LG-FedAvg", "FedFTG (small)", "Co-Boosting", "DFRD")
    )
}  # fmt: skip
"""The look of each shipped strategy, by its printed name: one number for color, dashes and marker."""


@dataclass(frozen=True)
class FigureStyle:
    """The look of all figures of a report.

    Args:
        width: in inches.
        font_size: in points.
        formats: of the files, some of ``pdf``, ``png`` and ``svg``.
        band: how the spread over seeds is drawn: ``fill``, ``lines`` or ``none``.
        kind: of the spread: ``t``, ``bootstrap`` or ``std``.
        smoothing: evaluated rounds of which each point of a curve is the mean, which the legend says.
        formulas: text between two dollar signs is drawn as a formula.
        slots: the look of each label; see :func:`assign_slots`.
    """

    width: float = WIDTH
    font_size: float = FONT_SIZE
    formats: tuple[str, ...] = ("pdf", "png")
    band: str = "fill"
    kind: str = "t"
    smoothing: int = 1
    formulas: bool = False
    slots: Mapping[str, int] = field(default_factory=dict)

    @property
    def text(self) -> float:
        """The font size relative to 7 points, by which rows, lines and markers grow."""
        return self.font_size / FONT_SIZE

    @property
    def parameters(self) -> dict[str, Any]:
        """Matplotlib's parameters."""
        size, scale = self.font_size, self.text
        return {
            "font.family": "DejaVu Sans",
            "font.size": size,
            "axes.labelsize": size + 0.5,
            "axes.titlesize": size,
            "legend.fontsize": size,
            "legend.title_fontsize": size,
            "xtick.labelsize": size,
            "ytick.labelsize": size,
            "axes.linewidth": 0.6 * scale,
            "xtick.major.width": 0.6 * scale,
            "ytick.major.width": 0.6 * scale,
            "xtick.major.size": 2.5 * scale,
            "ytick.major.size": 2.5 * scale,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "pdf.fonttype": 42,
            "svg.hashsalt": "fedkd",
            "savefig.bbox": None,
            "text.parse_math": self.formulas,
        }

    def panel_height(self, columns: int = 1) -> float:
        """Inches of a panel, where so many stand side by side."""
        return float(np.clip(0.41 * self.width / columns, 1.2 * self.text, 2.3 * self.text))

    def with_labels(self, labels: Iterable[str]) -> "FigureStyle":
        """The style with a look for each of these labels."""
        missing = [label for label in labels if label not in self.slots]
        return replace(self, slots=assign_slots({label: label for label in missing}, self.slots)) if missing else self

    def line(self, label: str) -> dict[str, Any]:
        """The line of a label: a color, and dashes and a marker that tell it from others in grayscale too."""
        return self.line_of(self.slots[label])

    def line_of(self, slot: int) -> dict[str, Any]:
        """The line with this number."""
        scale = self.text
        return {
            "color": COLORS[slot % len(COLORS)],
            "linestyle": DASHES[slot % len(DASHES)],
            "linewidth": 1.1 * scale,
            "marker": MARKERS[slot % len(MARKERS)],
            "markersize": 3.2 * scale,
            "markerfacecolor": "white",
            "markeredgewidth": 0.8 * scale,
        }

    def mark(self, label: str, size: float = 3.4) -> dict[str, Any]:
        """The marker of a label without a line."""
        return {**self.line(label), "linestyle": "none", "markersize": size * self.text}


def assign_slots(names: Mapping[str, str], taken: Mapping[str, int] | None = None) -> dict[str, int]:
    """A look for each label of a report: a number that stands for a color, dashes and a marker.

    A shipped strategy has the look of :data:`SLOTS`. Further rows of the same strategy, and other strategies, get looks that no row has. As
    long as there are enough colors, no two labels share one.

    Args:
        names: the printed name of the strategy, by label.
        taken: looks that labels have already; they are part of the result.
    """
    slots = dict(taken or {})
    few = len(names) + len(slots) <= len(COLORS)

    def is_free(slot: int) -> bool:
        colors = {one % len(COLORS) for one in slots.values()}
        return slot not in slots.values() and not (few and slot % len(COLORS) in colors)

    for label, name in names.items():
        if name in SLOTS and is_free(SLOTS[name]):
            slots[label] = SLOTS[name]
    for label in names:
        if label not in slots:
            slots[label] = next(slot for slot in range(len(slots) + len(COLORS) * len(SLOTS)) if is_free(slot))
    return slots


@contextmanager
def canvas(
    height: float,
    path_stem: Path | str | None,
    style: FigureStyle | None = None,
    width: float | None = None,
    layout: Literal["constrained"] | None = "constrained",
) -> Iterator[Figure]:
    """A figure to draw on. The files are written where the block ends.

    Args:
        height: in inches.
        path_stem: the files without suffix; None writes nothing.
        style: of the figure.
        width: in inches; None for that of the style.
        layout: of Matplotlib; None for axes that are placed by hand.
    """
    style = style or FigureStyle()
    with matplotlib.rc_context(cast(Any, style.parameters)):
        figure = Figure(figsize=(style.width if width is None else width, height), layout=layout)
        FigureCanvasAgg(figure)
        yield figure
        if path_stem is not None:
            _write(figure, figure_paths(path_stem, style))


def figure_paths(path_stem: Path | str, style: FigureStyle | None = None) -> list[Path]:
    """The files of a figure, one per format. Dots in the name stay: the suffix is added, not replaced."""
    stem = Path(path_stem)
    return [stem.with_name(f"{stem.name}.{suffix}") for suffix in (style or FigureStyle()).formats]


def _write(figure: Figure, paths: Sequence[Path]) -> None:
    """Write all files. Equal numbers give equal bytes."""
    engine = figure.get_layout_engine()
    if engine is not None:  # once for all files
        engine.execute(figure)
        figure.set_layout_engine("none")
    for path in paths:
        if path.suffix == ".pdf":
            FigureCanvasPdf(figure).print_pdf(path, metadata={"CreationDate": None})
        elif path.suffix == ".svg":
            FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})
        else:
            figure.set_dpi(DPI)
            FigureCanvasAgg(figure).print_png(path)
            figure.set_dpi(100)


def band(
    axes: Axes, values: Mapping[str, Any], color: str, style: FigureStyle, lower: float = -np.inf, upper: float = np.inf
) -> list[tuple[float, float]]:
    """Draw the spread over seeds around a curve: the interval, or the range of two seeds.

    Args:
        axes: to draw on.
        values: arrays ``x``, ``low``, ``high``, and ``n``.
        color: of the curve.
        style: of the figure.
        lower: the ends are cut here.
        upper: and here.

    Returns:
        The lowest and the highest value of the band, for :func:`limits`; of a long band without its first tenth. Nothing without a band.
    """
    if int(np.max(values["n"])) < 2 or style.band == "none":
        return []
    low, high = (np.clip(np.asarray(values[end], float), lower, upper) for end in ("low", "high"))
    if style.band == "fill":
        axes.fill_between(values["x"], low, high, color=color, alpha=0.16, linewidth=0)
    else:
        for end in (low, high):
            axes.plot(values["x"], end, color=color, linewidth=0.5 * style.text, alpha=0.7, zorder=2, label="_band")
    first = len(low) // 10 if len(low) >= LONG else 0
    return [(float(low[first:].min()), float(high[first:].max()))]


def curve_lines(axes: Axes) -> list[Line2D]:
    """The lines of the axes without those of bands."""
    return [line for line in axes.lines if line.get_label() != "_band"]


def limits(axes: Axes, ends: Sequence[tuple[float, float]] = (), whole: bool = False) -> None:
    """Let the axis hold the means within 0..100 %, and their bands as far as these at most double its length.

    Of a long curve the first tenth may lie below the axis.

    Args:
        axes: with curves in percent.
        ends: lowest and highest value of each band.
        whole: the axis holds all of the bands.
    """
    curves = [np.asarray(line.get_ydata(), float) for line in curve_lines(axes)]
    low = min(curve[len(curve) // 10 if len(curve) >= LONG else 0 :].min() for curve in curves if len(curve))
    high = max(curve.max() for curve in curves if len(curve))
    room, most = max(0.08 * (high - low), 1.0), 100.0 if whole else max(0.5 * (high - low), 1.0)
    lowest, highest = min([low, *(end for end, _ in ends)]), max([high, *(end for _, end in ends)])
    below, above = np.clip((low - lowest, highest - high), room, most)
    axes.set_ylim(max(-1, low - below), min(102, high + above))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    grid(axes, "y")


def grid(axes: Axes, axis: str) -> None:
    """Faint lines behind the marks, across ``x``, ``y`` or ``both``."""
    axes.grid(axis="x" if axis == "x" else "y" if axis == "y" else "both", linewidth=0.4, color="0.88")
    axes.set_axisbelow(True)
