"""Texts of figures: legends, labels of rows, and what lines and bands are."""

import re
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from simulations.reports.figures.style import FigureStyle

LONG_LABEL = 34
"""Characters of a row's label from which on it is broken between any two words."""

HANDLE = 10
"""Characters that the line before a text of a legend takes."""


def row_labels(axes: Axes, labels: Sequence[str], style: FigureStyle) -> None:
    """Labels of rows, from above. Long ones stand in two lines."""
    axes.set_yticks(range(len(labels)), list(map(row_label, labels)), linespacing=0.95)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    for text in axes.get_yticklabels():
        text.set_fontsize(style.font_size - ("\n" in text.get_text()))


def row_label(label: str) -> str:
    """The label of a row: a long one in lines that end after commas, or after words where a line would still be long."""
    if len(label) < 18:
        return label
    width = 8 + len(label) // 2
    lines = wrap(re.sub(r"(?<!,) ", "\u00a0", label), width, break_long_words=False)
    if max(map(len, lines)) > LONG_LABEL:
        lines = wrap(_tied(label), width, break_long_words=False)
    return "\n".join(lines).replace("\u00a0", " ")


def _tied(text: str) -> str:
    """The text with blanks that no line ends at: in ``n = 3`` and ``n = 2 to 3``."""
    return re.sub(r"(?<=\d) to (?=\d)", "\u00a0to\u00a0", text.replace(" = ", "\u00a0=\u00a0"))


def seeds_text(numbers: Iterable[int]) -> str:
    """``n = 3``, or ``n = 2 to 3`` where numbers of seeds differ."""
    found = set(numbers)
    return f"n = {min(found)}" if len(found) == 1 else f"n = {min(found)} to {max(found)}"


def spread_text(numbers: Iterable[int], style: FigureStyle) -> str:
    """What lines and bands are: ``Mean and 95 % interval (Student's t), n = 3 seeds``.

    Args:
        numbers: of seeds, one per label.
        style: of the figure.
    """
    sizes = set(numbers)
    names = {"t": "and 95 % interval (Student's t)", "bootstrap": "and 95 % interval (bootstrap)", "std": "± standard deviation"}
    smooth = f"; moving average of {style.smoothing} rounds" if style.smoothing > 1 else ""
    if sizes == {1}:
        return f"One seed, no interval{smooth}"
    if style.band == "none":
        return f"Mean over seeds{f' (n = {max(sizes)})' if len(sizes) == 1 else ''}{smooth}"
    if sizes == {2} and style.kind != "std":
        return f"Mean and range of n = 2 seeds{smooth}"
    if len(sizes) == 1:
        return f"Mean {names[style.kind]}, n = {max(sizes)} seeds{smooth}"
    others = [f"range at n = {number}" if number == 2 else f"none at n = {number}" for number in sorted(sizes) if number < 3]
    others = [text for text in others if style.kind != "std" or not text.startswith("range")]
    return f"Mean {names[style.kind]} over seeds{''.join(f', {text}' for text in others)}{smooth}"


def legend(
    figure: Figure,
    seeds: Mapping[str, int],
    style: FigureStyle,
    title: str | None = None,
    width: float | None = None,
    joined: bool = True,
) -> None:
    """The labels below the panels, with the number of seeds: once where it is the same for all, else by each label.

    Args:
        figure: with the panels.
        seeds: number of seeds by label.
        style: of the figure; has a look for each label.
        title: above the labels; None for the meaning of bands.
        width: of the figure in inches; None for that of the style.
        joined: the markers of a label are joined by its line.
    """
    title = spread_text(seeds.values(), style) if title is None else title
    texts = [wrapped(text, style, width, HANDLE) for text in legend_texts(seeds)]
    looks = [style.line(label) if joined else style.mark(label) for label in seeds]
    handles = [Line2D([], [], **look, label=text) for look, text in zip(looks, texts, strict=True)]
    below(figure, handles, style, legend_shape(texts, style, width)[1], wrapped(title, style, width))


def below(figure: Figure, handles: Sequence[Any], style: FigureStyle, columns: int, title: str | None = None) -> None:
    """A legend below all panels."""
    shown = figure.legend(
        handles=list(handles),
        title=title,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=3.2,
        handletextpad=0.6,
        columnspacing=1.2,
        labelspacing=0.3,
        borderpad=0.1,
    )
    shown.get_title().set_multialignment("center")


def legend_texts(seeds: Mapping[str, int]) -> list[str]:
    """The labels, each with its number of seeds where the numbers differ."""
    alike = len(set(seeds.values())) == 1
    return [label if alike else f"{label} (n = {number})" for label, number in seeds.items()]


def legend_shape(texts: Sequence[str], style: FigureStyle, width: float | None = None) -> tuple[int, int]:
    """Rows and columns of a legend: as many columns as texts of this length leave room for."""
    longest = max(len(line) for text in texts for line in text.splitlines() or [""])
    available = (style.width if width is None else width) / style.text
    columns = max(1, min(len(texts), int(available / (0.48 + 0.058 * longest))))
    rows = -(-len(texts) // columns)
    return rows, -(-len(texts) // rows)  # no more columns than those rows fill


def legend_height(seeds: Mapping[str, int], style: FigureStyle, width: float | None = None) -> float:
    """Inches that :func:`legend` takes, its title included."""
    title = wrapped(spread_text(seeds.values(), style), style, width)
    texts = [wrapped(text, style, width, HANDLE) for text in legend_texts(seeds)]
    rows = legend_shape(texts, style, width)[0]
    more = sum(text.count("\n") for text in texts)  # a text of two lines stands in a column of its own
    return 0.14 * style.text * (1 + title.count("\n") + rows + more)


def name_horizontal_axis(figure: Figure, text: str, style: FigureStyle) -> None:
    """One label below all panels, in as many lines as it needs."""
    figure.supxlabel(wrapped(text, style), fontsize=style.font_size + 0.5, linespacing=1.1)


def wrapped(text: str, style: FigureStyle, width: float | None = None, indent: int = 0) -> str:
    """A text in lines as long as the figure is wide, without ``indent`` characters; ``n = 2 to 3`` stays together."""
    lines = wrap(_tied(text), max(16, line_length(style, width) - indent))
    return "\n".join(lines).replace("\u00a0", " ")


def line_length(style: FigureStyle, width: float | None = None) -> int:
    """Characters of a line of text across the figure."""
    return max(16, int((style.width if width is None else width) / style.text / 0.058))
