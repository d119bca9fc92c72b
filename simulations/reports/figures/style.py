"""How figures look: a column wide, readable in a two-column paper, in greyscale, and by the colour-blind."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

WIDTH = 3.4  # inches: a column

PAGE = 7.1  # inches: both columns and what is between them

DPI = 300

LONG = 30
"""Points from which on a curve's first tenth, where accuracy rises steeply, may lie below the axis."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")  # Okabe and Ito's, less the faint yellow

DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)), (0, (9, 2)), (0, (3, 1.2, 1, 1.2, 1, 1.2)))

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.labelsize": 7.5,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "savefig.bbox": None,
}


@contextmanager
def canvas(
    height: float, path_stem: Path | str, layout: str = "constrained", width: float = WIDTH
) -> Iterator[tuple[Figure, tuple[Path, Path]]]:
    """A figure of ``height`` inches, a column wide, to draw on; it is written, as PDF and PNG, where the block ends."""
    stem = Path(path_stem)
    paths = stem.with_name(stem.name + ".pdf"), stem.with_name(stem.name + ".png")  # with_suffix would cut "alpha-0.1" to "alpha-0"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
        yield figure, paths
        if figure.get_layout_engine() is not None:  # once for both files
            figure.get_layout_engine().execute(figure)
            figure.set_layout_engine("none")
        FigureCanvasPdf(figure).print_pdf(paths[0], metadata={"CreationDate": None})  # the same numbers give the same bytes
        figure.set_dpi(DPI)
        FigureCanvasAgg(figure).print_png(paths[1])


def line_style(style: int) -> dict[str, Any]:
    """The ``style``-th line: a colour, and dashes and marker that tell it from the others in greyscale too."""
    return {
        "color": COLORS[style % len(COLORS)],
        "linestyle": DASHES[style % len(DASHES)],
        "linewidth": 1.1,
        "marker": MARKERS[style % len(MARKERS)],
        "markersize": 3.2,
        "markerfacecolor": "white",
        "markeredgewidth": 0.8,
    }


def limits(axes: Axes) -> None:
    """Let the axis follow the means, with room for their bands, within 0..100 %; of a long curve the first tenth may lie below it."""
    curves = [np.asarray(line.get_ydata()) for line in axes.lines]
    low = min(curve[len(curve) // 10 if len(curve) >= LONG else 0 :].min() for curve in curves if len(curve))
    high = max(curve.max() for curve in curves if len(curve))
    room = max(0.08 * (high - low), 1.0)
    axes.set_ylim(max(-1, low - room), min(102, high + room))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y", linewidth=0.4, color="0.88")
    axes.set_axisbelow(True)


def rows(axes: Axes, labels: Sequence[str]) -> None:
    """Labels of rows, from above; those that are long in two lines."""
    kept = [re.sub(r"(?<!,) ", "\u00a0", label) for label in labels]  # broken after commas only
    wrapped = [label if len(label) < 18 else "\n".join(wrap(label, 8 + len(label) // 2)) for label in kept]
    axes.set_yticks(range(len(labels)), wrapped, linespacing=0.95)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    for text in axes.get_yticklabels():
        text.set_fontsize(6 if "\n" in text.get_text() else 7)


def over(numbers: Iterable[int]) -> str:
    """``n = 3`` seeds, or how few and how many."""
    found = set(numbers)
    return f"n = {min(found)}" if len(found) == 1 else f"n = {min(found)} to {max(found)}"


def legend(figure: Figure, lines: Mapping[str, Sequence], styles: Mapping[str, int], kind: str = "t") -> None:
    """The labels below the panels, with n: once where it is the same for all, else by each label; ``kind`` is that of the interval."""
    numbers = {label: len(frames) for label, frames in lines.items()}
    if set(numbers.values()) == {1}:
        title = "One seed (n = 1), hence no interval"
    elif len(set(numbers.values())) == 1:
        title = f"Mean and 95 % interval ({kind}) over seeds (n = {max(numbers.values())})"
    else:
        title = f"Mean and 95 % interval ({kind}) over seeds" + ("; none at n = 1" if 1 in numbers.values() else "")
    handles = [Line2D([], [], **line_style(styles[label]), label=text) for label, text in zip(lines, legend_texts(lines), strict=True)]
    figure.legend(
        handles=handles,
        title=title,
        loc="outside lower center",
        ncols=legend_shape(lines)[1],
        frameon=False,
        handlelength=3.2,
        handletextpad=0.6,
        columnspacing=1.2,
        labelspacing=0.3,
        borderpad=0.1,
    )


def legend_texts(lines: Mapping[str, Sequence]) -> list[str]:
    """The labels, each with its n where they differ in it."""
    alike = len({len(frames) for frames in lines.values()}) == 1
    return [label if alike else f"{label} (n = {len(frames)})" for label, frames in lines.items()]


def legend_shape(lines: Mapping[str, Sequence]) -> tuple[int, int]:
    """Rows and columns: as many columns as texts of this length leave room for."""
    longest = max(len(text) for text in legend_texts(lines))
    columns = max(1, min(len(lines), int(WIDTH / (0.48 + 0.058 * longest))))
    rows = -(-len(lines) // columns)
    return rows, -(-len(lines) // rows)  # no more columns than those rows fill
