"""Tables as one structure: cells of text with the numbers behind them, printed as Markdown, CSV, LaTeX or HTML."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fedkd.errors import require
from simulations.reports.statistics import INTERVALS, interval, is_range
from simulations.reports.tables.mathematics import plain
from simulations.run_folder.csv_rows import escaped

NONE_AT_ONE = "; none at n = 1"
"""A remark of legends on cells of one seed, which only tables with such cells print."""

RANGE_AT_TWO = "; at n = 2 (lowest to highest) instead"
"""A remark of legends on cells of two seeds, which only tables with such cells print."""

DIVERGED = "Diverged: the training of so many seeds of the row diverged. They are in no mean; n counts the others."
"""A sentence of the legend of tables with such rows."""

NONE = float("nan")
"""The number of a cell without a number."""

DASH = "-"
"""The text of an empty cell."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        text: as it is printed.
        value: the number that is printed, in full precision; NaN for none.
        low: lower end of the interval; NaN for none.
        high: upper end of the interval; NaN for none.
        n: number of seeds, where the cell is a mean over seeds.
        mark: ``best``, ``second`` or nothing.
    """

    text: str
    value: float = NONE
    low: float = NONE
    high: float = NONE
    n: int | None = None
    mark: str = ""


@dataclass(frozen=True)
class Column:
    """A column. A ``text`` column is aligned to the left and has no numbers."""

    title: str
    cells: tuple[Cell, ...]
    text: bool = False

    @property
    def has_interval(self) -> bool:
        """Some cell has an interval."""
        return any(np.isfinite(cell.low) or np.isfinite(cell.high) for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Args:
        name: of its files.
        title: the heading.
        columns: of equal lengths.
        legend: the meaning of the columns.
        blocks: a key for each row. A rule is drawn where the key changes. ``()``: one block.
        marked_by: ``column`` or ``row``, along which the best mean is marked.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    legend: str = ""
    blocks: tuple[Hashable, ...] = ()
    marked_by: str = "column"

    def __post_init__(self) -> None:
        """Remove the remarks on cells of one seed and of two seeds where the table has none.

        Raises:
            ConfigError: two columns have one title, hence would be one column of a file.
        """
        titles = [column.title for column in self.columns]
        require(len(set(titles)) == len(titles), f"table {self.name}", "must have columns of different names", titles)
        sizes = {cell.n for column in self.columns for cell in column.cells}
        for n, remark in ((1, NONE_AT_ONE), (2, RANGE_AT_TWO)):
            if n not in sizes:
                object.__setattr__(self, "legend", self.legend.replace(remark, ""))

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """The cells, row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))

    @property
    def begins(self) -> list[int]:
        """The rows with which a block begins, without the first row."""
        return [row for row in range(1, len(self.blocks)) if self.blocks[row] != self.blocks[row - 1]]

    @property
    def marks(self) -> str:
        """A sentence that explains bold and underlined cells; empty where no cell is marked."""
        marks = {cell.mark for column in self.columns for cell in column.cells}
        if not marks & {"best", "second"}:
            return ""
        where = " of a row" if self.marked_by == "row" else " between two rules" if self.begins else ""
        return f"Bold: best mean{where}{'; underlined: second' if 'second' in marks else ''}."


@dataclass(frozen=True)
class NumberFormat:
    """How a mean over seeds is printed.

    Args:
        kind: ``t`` or ``bootstrap`` for a 95 % interval, ``std`` for the standard deviation.
        decimals: digits after the point of an accuracy in percent.
    """

    kind: str = "t"
    decimals: int = 2

    @property
    def form(self) -> str:
        """The format of an accuracy in percent."""
        return f".{self.decimals}f"

    @property
    def short_form(self) -> str:
        """The same with one digit less, for wide tables."""
        return f".{max(0, self.decimals - 1)}f"

    @property
    def of_differences(self) -> "NumberFormat":
        """The format of differences between strategies, which always have an interval."""
        return replace(self, kind="t") if self.kind == "std" else self

    @property
    def sign(self) -> str:
        """The form of a cell: ``± half-width of its 95 % interval``."""
        forms = {"t": "± half-width of its 95 % interval", "bootstrap": "[95 % interval]", "std": "± standard deviation"}
        return forms[self.kind]

    @property
    def legend(self) -> str:
        """A phrase that explains a cell."""
        how = "over seeds" if self.kind == "std" else f"{INTERVALS[self.kind]}{RANGE_AT_TWO}"
        return f"mean over n seeds {self.sign} ({how}{NONE_AT_ONE})"

    def cell(self, values: ArrayLike, form: str | None = None, sign: str = "") -> Cell:
        """The mean over seeds and what surrounds it. ``form`` is the format of the number, that of accuracies by default."""
        return over_seeds(values, self.kind, self.form if form is None else form, sign)

    def percent(self, values: ArrayLike, sign: str = "") -> Cell:
        """The mean over seeds of fractions, in percent."""
        return self.cell(100 * np.asarray(values, float), sign=sign)

    def percents(self, title: str, values: Sequence[ArrayLike]) -> Column:
        """A column of fractions in percent, one list of seeds per row."""
        return Column(title, tuple(self.percent(one) for one in values))


def texts(title: str, values: Sequence[object]) -> Column:
    """A column of text."""
    return Column(title, tuple(Cell(str(value)) for value in values), text=True)


def counts(title: str, values: Sequence[int]) -> Column:
    """A column of whole numbers."""
    return Column(title, tuple(Cell(f"{value:,}", value) for value in values))


def numbers(title: str, values: Sequence[float], form: str = ".2f") -> Column:
    """A column of numbers without intervals; a dash for NaN."""
    return Column(title, tuple(Cell(DASH if np.isnan(value) else f"{value:{form}}", float(value)) for value in values))


def over_seeds(values: ArrayLike, kind: str, form: str = ".2f", sign: str = "") -> Cell:
    """The mean over seeds with its interval: ``81.20 ± 0.45``, or ``81.20 [80.7, 81.6]`` of a bootstrap; none for one seed.

    Two seeds have their range: ``81.20 (80.75 to 81.65)``.
    """
    seeds = np.asarray(values, float)
    mean, low, high = (float(value) for value in interval(seeds, kind))
    return of_interval(mean, low, high, len(seeds), kind, form, sign)


def of_interval(mean: float, low: float, high: float, n: int, kind: str, form: str = ".2f", sign: str = "") -> Cell:
    """A mean with the ends of its interval."""
    if np.isnan(mean):
        return Cell(DASH, n=n)
    shown = f"{mean:{sign}{form}}"
    if np.isnan(low):
        return Cell(shown, mean, n=n)
    low_text, high_text = f"{low:{sign}{form}}", f"{high:{sign}{form}}"
    return Cell(shown + around(low_text, high_text, f"{high - mean:{form}}", n, kind), mean, low, high, n)


def around(low: str, high: str, half: str, n: int, kind: str) -> str:
    """What surrounds a mean over n seeds, by the texts of its ends and of its half-width."""
    if is_range(n, kind):
        return f" ({low} to {high})"
    return f" [{low}, {high}]" if kind == "bootstrap" else f" ± {half}"


def ranked(cells: Sequence[Cell], blocks: Sequence[Hashable], form: str = ".2f", lowest: bool = False) -> tuple[Cell, ...]:
    """The cells, the best and the second mean of each block marked.

    Means that are printed alike have one mark. Nothing is marked where all are equal, and no second where only two cells have a mean.

    Args:
        cells: of one column, or of one row.
        blocks: a key for each cell; cells of one key are compared.
        form: the format in which means are printed.
        lowest: the best mean is the lowest one.
    """
    shown = pd.Series([float(f"{cell.value:{form}}") for cell in cells], dtype=float)
    marks = [""] * len(cells)
    for block in dict.fromkeys(blocks):
        rows = [row for row, key in enumerate(blocks) if key == block]
        values = shown[rows].dropna()
        order = sorted(set(values), reverse=not lowest)
        if len(order) > 1:
            named = dict(zip(order, ("best", "second")[: 1 + (len(values) > 2)]))
            for row in rows:
                marks[row] = named.get(shown[row], "")
    return tuple(replace(cell, mark=mark) for cell, mark in zip(cells, marks, strict=True))


def markdown(table: Table, marks: bool = True) -> str:
    """The table in Markdown that reads as plain text too: the heading, the table, the legend.

    With ``marks`` the best mean is bold and the second in italics.
    """
    form = {"": "{}", "best": "**{}**" if marks else "{}", "second": "_{}_" if marks else "{}"}
    columns = {plain(column.title): [form[cell.mark].format(plain(cell.text)) for cell in column.cells] for column in table.columns}
    body = markdown_table(columns, {plain(column.title) for column in table.columns if column.text})
    return "\n\n".join(part for part in (f"{table.title}:" if table.title else "", body, table.legend) if part) + "\n"


def frame(table: Table) -> pd.DataFrame:
    """The numbers behind the cells, for a CSV file.

    After a column with intervals stand the ends, ``<title>: low`` and ``<title>: high``, and ``<title>: n`` where the number of seeds
    differs between the cells of the table.
    """
    columns: dict[str, Sequence[object]] = {}
    unequal = len({cell.n for column in table.columns for cell in column.cells} - {None}) > 1
    for column in table.columns:
        as_text = column.text or all(np.isnan(cell.value) and np.isnan(cell.low) for cell in column.cells)
        title = plain(column.title)
        columns[title] = [plain(cell.text) if as_text else cell.value for cell in column.cells]
        if column.has_interval and not column.text:
            columns |= {f"{title}: {end}": [getattr(cell, end) for cell in column.cells] for end in ("low", "high")}
            if unequal:
                columns[f"{title}: n"] = [cell.n for cell in column.cells]
    return pd.DataFrame(columns)


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV, in which no text is a formula for a spreadsheet."""
    return frame.rename(columns=escaped).map(escaped).to_csv(index=False)


def markdown_table(columns: Mapping[str, Sequence[str]], left: set[str]) -> str:
    """A Markdown table. Columns in ``left`` are aligned to the left, the others to the right."""
    cells = [[title, *(str(cell).replace("|", "\\|") for cell in column)] for title, column in columns.items()]
    widths = [max(2, *map(len, column)) for column in cells]
    text = [title in left for title in columns]
    rows = [[c.ljust(w) if t else c.rjust(w) for c, w, t in zip(row, widths, text, strict=True)] for row in zip(*cells, strict=True)]
    rows.insert(1, ["-" * w if t else "-" * (w - 1) + ":" for w, t in zip(widths, text, strict=True)])  # the colon aligns to the right
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
