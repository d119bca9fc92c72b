"""A section of a report: what was run, its tables and figures, and the files that hold the tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from simulations.reports.attempts import Attempts
from simulations.reports.figures.drawing import Drawing
from simulations.reports.tables.latex import latex
from simulations.reports.tables.table import Table, csv_text, frame, markdown, texts

Note = tuple[str, str]
"""An excluded run, and the reason."""


@dataclass(frozen=True)
class ReportSection:
    """Tables and figures of federated runs, or of distillations.

    Args:
        title: the heading.
        name: of the Markdown file with all tables.
        facts: what was run, by name.
        tables: of the section.
        drawings: the figures of the section.
        numbers: further tables of numbers, by the name of their CSV file.
    """

    title: str
    name: str
    facts: Mapping[str, str]
    tables: list[Table]
    drawings: list[Drawing]
    numbers: dict[str, pd.DataFrame] = field(default_factory=dict)

    def write(self, output: Path, attempts: Attempts, more: Sequence[Table] = ()) -> list[Path]:
        """Write the tables, and ``more`` of them, as one Markdown file, and each as CSV and LaTeX.

        Returns:
            The paths. ``attempts`` gains a table that cannot be printed.
        """
        paths = [output / f"{self.name}.md"]
        texts = [facts_text(self.facts)]
        for table in [*self.tables, *more]:
            if (printed := attempts.make(f"table {table.name}", forms, table)) is not None:
                texts.append(printed[0])
                paths += [output / f"{table.name}.csv", output / f"{table.name}.tex"]
                for path, text in zip(paths[-2:], printed[1:], strict=True):
                    path.write_text(text, encoding="utf-8")
        paths[0].write_text("\n".join(texts), encoding="utf-8")
        for name, numbers in self.numbers.items():
            paths.append(output / f"{name}.csv")
            paths[-1].write_text(csv_text(numbers), encoding="utf-8")
        return paths

    def __str__(self) -> str:
        """The facts and the tables as plain text."""
        return "\n".join([facts_text(self.facts), *(markdown(table, marks=False) for table in self.tables)])


def forms(table: Table) -> tuple[str, str, str]:
    """The table in Markdown, as CSV and in LaTeX."""
    return markdown(table), csv_text(frame(table)), latex(table)


def facts_text(facts: Mapping[str, str]) -> str:
    """Facts as a list in Markdown."""
    return "".join(f"- {name}: {value}\n" for name, value in facts.items())


def excluded_runs(notes: Sequence[Note]) -> list[Table]:
    """The table of excluded runs; none where no run was excluded."""
    if not notes:
        return []
    runs, reasons = zip(*notes, strict=True)
    return [Table("excluded_runs", "Excluded runs", (texts("run", runs), texts("reason", reasons)))]
