"""A report as one HTML page with its tables and figures. The page needs no network."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from simulations.reports.figures.drawing import Drawing
from simulations.reports.figures.style import DPI
from simulations.reports.section import ReportSection
from simulations.reports.tables.mathematics import plain
from simulations.reports.tables.table import Cell, Table

NAME = "report.html"

TEMPLATE = "report.html.jinja"


def write(
    sections: Sequence[ReportSection], more: Sequence[Table], facts: Mapping[str, str], notes: Sequence[str], output: Path, title: str
) -> Path:
    """Write ``report.html`` into ``output``, and return its path.

    Args:
        sections: of the report; the PNG files of their figures are in ``output``.
        more: tables at the end of the page.
        facts: on the report itself, by name.
        notes: on figures and comparisons that are missing.
        output: the folder of the report.
        title: the name of the experiment.
    """
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: plain(value) if type(value) is str else value,
    )
    pages.globals |= {"image": image, "links": links, "width": width, "numbers": numbers, "anchor": anchor}
    names = " and ".join(section.title.lower() for section in sections).capitalize()
    text = pages.get_template(TEMPLATE).render(title=f"{names}: {title}", sections=sections, more=more, facts=facts, notes=notes)
    path = output / NAME
    path.write_text(text, encoding="utf-8")
    return path


REM_PER_INCH = 7.6
"""Width of a figure on the page, relative to its width on paper."""


def image(drawing: Drawing) -> str:
    """The figure as a data URL."""
    return "data:image/png;base64," + b64encode(_png(drawing).read_bytes()).decode("ascii")


def width(drawing: Drawing) -> float:
    """The width of the figure on the page, in rem."""
    with open(_png(drawing), "rb") as file:
        pixels = int.from_bytes(file.read(20)[16:20], "big")
    return round(REM_PER_INCH * pixels / DPI, 1)


def links(drawing: Drawing) -> list[str]:
    """The files of the figure beside the page: vectors, or else the PNG file."""
    names = [path.name for path in drawing.paths]
    return [name for name in names if not name.endswith(".png")] or names


def _png(drawing: Drawing) -> Path:
    """The PNG file of a figure."""
    return next(path for path in drawing.paths if path.suffix == ".png")


def numbers(cell: Cell) -> dict[str, str]:
    """The numbers of a cell in full precision, as attributes."""
    found = {"value": cell.value, "low": cell.low, "high": cell.high}
    return {f"data-{name}": repr(float(value)) for name, value in found.items() if isfinite(value)}


def anchor(section: ReportSection, table: Table) -> str:
    """The identifier of a table in the page."""
    return f"{section.name}-{table.name}"
