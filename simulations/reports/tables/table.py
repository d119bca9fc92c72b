"""Tables as one structure: cells of text with the numbers behind them, to be rendered as Markdown, CSV, LaTeX or on a page."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from simulations.reports.statistics import interval

NONE = float("nan")

DASH = "-"
"""The text of a cell in which there is nothing."""


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, the numbers that it shows in full precision (NaN: none), and ``best`` or ``second``."""

    text: str
    value: float = NONE
    low: float = NONE
    high: float = NONE
    n: int | None = None
    mark: str = ""


@dataclass(frozen=True)
class Column:
    """A column; ``text`` ones are set to the left and have no numbers, and some have an interval."""

    title: str
    cells: tuple[Cell, ...]
    text: bool = False

    @property
    def has_interval(self) -> bool:
        return any(np.isfinite(cell.low) or np.isfinite(cell.high) for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Args:
        name: of its files.
        title: a line above it.
        columns: of equal lengths.
        legend: what the columns mean.
        blocks: a key for each row; where it changes, a rule is drawn. ``()``: one block.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    legend: str = ""
    blocks: tuple[Hashable, ...] = ()

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        return list(zip(*(column.cells for column in self.columns), strict=True))

    @property
    def marked(self) -> bool:
        """Some cell is best or second."""
        return any(cell.mark for column in self.columns for cell in column.cells)

    @property
    def begins(self) -> list[int]:
        """The rows, the first left out, with which a block begins."""
        return [row for row in range(1, len(self.blocks)) if self.blocks[row] != self.blocks[row - 1]]


def texts(title: str, values: Sequence[object]) -> Column:
    """A column of words."""
    return Column(title, tuple(Cell(str(value)) for value in values), text=True)


def counts(title: str, values: Sequence[int]) -> Column:
    """A column of whole numbers."""
    return Column(title, tuple(Cell(f"{value:,}", value) for value in values))


def numbers(title: str, values: Sequence[float], form: str = ".2f") -> Column:
    """A column of numbers without intervals."""
    return Column(title, tuple(Cell(DASH if np.isnan(value) else f"{value:{form}}", float(value)) for value in values))


def over_seeds(values: Sequence[float], kind: str, form: str = ".2f", sign: str = "") -> Cell:
    """The mean over seeds with its interval: ``81.20 ± 0.45``, or ``81.20 [80.7, 81.6]`` of a bootstrap; none for one seed."""
    mean, low, high = (float(value) for value in interval(np.asarray(values, float), kind))
    return of_interval(mean, low, high, len(values), kind, form, sign)


def of_interval(mean: float, low: float, high: float, n: int, kind: str, form: str = ".2f", sign: str = "") -> Cell:
    """A mean with its interval."""
    if np.isnan(mean):
        return Cell(DASH, n=n)
    shown = f"{mean:{sign}{form}}"
    if np.isnan(low):
        return Cell(shown, mean, n=n)
    around = f" ± {high - mean:{form}}" if kind == "t" else f" [{low:{sign}{form}}, {high:{sign}{form}}]"
    return Cell(shown + around, mean, low, high, n)


def percent(values: Sequence[float], sign: str = "") -> Cell:
    """Shares as ``81.20 ± 0.45`` percent over seeds; no interval for one, a dash where there is nothing."""
    return over_seeds(100 * np.asarray(values, float), "t", sign=sign)


def percents(title: str, values: Sequence[Sequence[float]]) -> Column:
    """A column of shares, each over seeds."""
    return Column(title, tuple(map(percent, values)))


def ranked(cells: Sequence[Cell], blocks: Sequence[Hashable], form: str = ".2f", lowest: bool = False) -> tuple[Cell, ...]:
    """The cells, the best and the second of each block marked by the mean that is shown; equal ones alike, none where all are equal."""
    shown = pd.Series([float(f"{cell.value:{form}}") for cell in cells], dtype=float)
    marks = [""] * len(cells)
    for rows in pd.Series(range(len(cells))).groupby([str(block) for block in blocks]):
        order = sorted(set(shown[rows[1]].dropna()), reverse=not lowest)
        if len(order) > 1:
            named = dict(zip(order, ("best", "second"), strict=False))
            marks = [named.get(shown[row], "") if row in set(rows[1]) else mark for row, mark in enumerate(marks)]
    return tuple(replace(cell, mark=mark) for cell, mark in zip(cells, marks, strict=True))


def markdown(table: Table, marks: bool = True) -> str:
    """The table in Markdown that reads as plain text too: its title, itself, its legend. With ``marks`` the best is in bold, the second in italics."""
    form = {"": "{}", "best": "**{}**" if marks else "{}", "second": "_{}_" if marks else "{}"}
    columns = {column.title: [form[cell.mark].format(cell.text) for cell in column.cells] for column in table.columns}
    body = markdown_table(columns, {column.title for column in table.columns if column.text})
    return "\n\n".join(part for part in (f"{table.title}:" if table.title else "", body, table.legend) if part) + "\n"


def frame(table: Table) -> pd.DataFrame:
    """The numbers behind the cells, as a CSV file holds them: after each mean the ends of its interval, where the column has any, and n, where
    the cells of the table differ in it."""
    columns: dict[str, Sequence[object]] = {}
    unlike = len({cell.n for column in table.columns for cell in column.cells} - {None}) > 1
    for column in table.columns:
        plain = column.text or all(np.isnan(cell.value) and np.isnan(cell.low) for cell in column.cells)
        columns[column.title] = [cell.text if plain else cell.value for cell in column.cells]
        if column.has_interval and not column.text:
            columns |= {f"{column.title}: {end}": [getattr(cell, end) for cell in column.cells] for end in ("low", "high")}
            if unlike:
                columns[f"{column.title}: n"] = [cell.n for cell in column.cells]
    return pd.DataFrame(columns)


def markdown_table(columns: Mapping[str, Sequence[str]], left: set[str]) -> str:
    """A Markdown table, text (the columns ``left``) to the left and numbers to the right."""
    cells = [[title, *(str(cell).replace("|", "\\|") for cell in column)] for title, column in columns.items()]
    widths = [max(2, *map(len, column)) for column in cells]
    text = [title in left for title in columns]
    rows = [[c.ljust(w) if t else c.rjust(w) for c, w, t in zip(row, widths, text, strict=True)] for row in zip(*cells, strict=True)]
    rows.insert(1, ["-" * w if t else "-" * (w - 1) + ":" for w, t in zip(widths, text, strict=True)])  # the colon aligns right
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
