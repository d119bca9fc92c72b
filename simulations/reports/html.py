"""A report as one self-contained HTML page: its tables and figures, readable without any network."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from simulations.reports.figures.selection import Drawing
from simulations.reports.section import ReportSection
from simulations.reports.tables.table import Cell, Table

NAME = "report.html"

TEMPLATE = "report.html.jinja"


def write(parts: Sequence[ReportSection], more: Sequence[Table], facts: Mapping[str, str], notes: Sequence[str], output: Path) -> Path:
    """Write ``report.html`` into ``output``, with the figures that are drawn there, and return its path.

    Args:
        parts: of the report; their figures are there already.
        more: tables that stand at the end.
        facts: what is said first, by its name.
        notes: on what is missing.
        output: the folder of the report.
    """
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pages.globals |= {"image": image, "numbers": numbers, "identity": identity}
    names = " and ".join(part.title.lower() for part in parts).capitalize()
    text = pages.get_template(TEMPLATE).render(
        title=f"{names}: {output.absolute().parent.name}", parts=parts, more=more, facts=facts, notes=notes
    )
    path = output / NAME
    path.write_text(text, encoding="utf-8")
    return path


def image(drawing: Drawing) -> str:
    """The figure within the page."""
    return "data:image/png;base64," + b64encode(drawing.paths[1].read_bytes()).decode("ascii")


def numbers(cell: Cell) -> dict[str, str]:
    """What a cell shows, in full precision: its attributes."""
    found = {"value": cell.value, "low": cell.low, "high": cell.high}
    return {f"data-{name}": repr(float(value)) for name, value in found.items() if isfinite(value)}


def identity(part: ReportSection, table: Table) -> str:
    """By which the table is found in the page."""
    return f"{part.name}-{table.name}"
