"""A section of a report: its tables and figures, and the files that hold the tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from simulations.reports.figures.selection import Drawing
from simulations.reports.tables.latex import latex
from simulations.reports.tables.table import Table, frame, markdown, texts

Note = tuple[str, str]
"""What was left out, and why."""


@dataclass(frozen=True)
class ReportSection:
    """Tables and figures that belong together; ``name`` is that of the Markdown file with all tables.

    ``behind`` are the numbers behind them, by the name of their CSV file.
    """

    title: str
    name: str
    tables: list[Table]
    selection: list[Drawing]
    behind: dict[str, pd.DataFrame] = field(default_factory=dict)

    def write(self, output: Path, more: Sequence[Table] = ()) -> list[Path]:
        """The tables, and ``more`` of them, as one Markdown file, and each as CSV and LaTeX."""
        paths = [output / f"{self.name}.md"]
        paths[0].write_text("\n".join(map(markdown, [*self.tables, *more])), encoding="utf-8")
        for table in [*self.tables, *more]:
            paths += [output / f"{table.name}.csv", output / f"{table.name}.tex"]
            frame(table).to_csv(paths[-2], index=False)
            paths[-1].write_text(latex(table), encoding="utf-8")
        for name, numbers in self.behind.items():
            paths.append(output / f"{name}.csv")
            numbers.to_csv(paths[-1], index=False)
        return paths

    def __str__(self) -> str:
        """The tables as plain text."""
        return "\n".join(markdown(table, marks=False) for table in self.tables)


def excluded_runs(notes: Sequence[Note]) -> list[Table]:
    """A table of what was left out; none where nothing was."""
    columns = zip(("run", "why"), zip(*notes, strict=True))
    return [Table("left_out", "Left out", tuple(texts(title, column) for title, column in columns))] if notes else []
