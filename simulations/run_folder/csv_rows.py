"""CSV files that grow during a run: rows are appended and flushed, columns are added, and rows after a checkpoint are cut.

Texts are written by :func:`escaped`, so that no spreadsheet reads a formula from a name of a class, a client or a file.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from fedkd.files import sync_folder, write_atomically

Value = TypeVar("Value")

FORMULA = re.compile(r"'*[=+\-@\t\r\n].", re.DOTALL)
"""The beginning of a text that a spreadsheet may compute, or of a text that :func:`escaped` has changed."""


def append(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Append ``rows`` under the header of the file, or under ``columns`` if the file is new, and wait until they are on disk."""
    header, is_new = header_of(path), not path.exists()
    with open(path, "a", newline="") as file:
        file.write(table(header or columns, rows, titled=header is None))
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def header_of(path: Path) -> list[str] | None:
    """The columns of a CSV file; None if the file is missing or empty."""
    if not (path.exists() and path.stat().st_size):
        return None
    with open(path, newline="") as file:
        return next(csv.reader(file))


def widen(path: Path, columns: list[str]) -> None:
    """Add columns to a CSV file. They are empty in the rows that exist."""
    with open(path, newline="") as file:
        rows = [{name: unescaped(value) for name, value in row.items()} for row in csv.DictReader(file)]
    write_atomically(path, table(columns, rows, titled=True).encode())


def table(columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, titled: bool) -> str:
    """Rows as CSV text, with or without the header."""
    text = io.StringIO()
    cells = [{name: escaped(value) for name, value in row.items()} for row in rows]
    broken = any(isinstance(value, str) and "\r" in value for row in cells for value in row.values())  # csv quotes none of itself
    quoting: Literal[0, 1] = csv.QUOTE_ALL if broken else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n", quoting=quoting)
    if titled:
        writer.writeheader()
    writer.writerows(cells)
    return text.getvalue()


def complete_lines(path: Path) -> list[str]:
    """The lines of a CSV file with their ends, without a last line that is incomplete. Other line breaks of Unicode end no line."""
    with open(path, newline="", encoding="utf-8") as file:
        return [f"{line}\n" for line in file.read().split("\n")[:-1]]


def count(path: Path, last: int) -> int:
    """The number of complete rows up to round or epoch ``last``. 0 if the file is missing.

    Raises:
        ValueError: a row does not begin with a number, or the file is no text.
    """
    return sum(int(line.split(",", 1)[0]) <= last for line in complete_lines(path)[1:]) if path.exists() else 0


def cut(path: Path, server_round: int) -> None:
    """Remove the rows after ``server_round``, and a last line that is incomplete."""
    if not path.exists():
        return
    lines = complete_lines(path)
    kept = [line for line in lines[1:] if int(line.split(",", 1)[0]) <= server_round]
    write_atomically(path, "".join([*lines[:1], *kept] if kept else []).encode())


def escaped(value: Value) -> Value | str:
    """The value as a cell. A text that begins as a formula stands behind an apostrophe, which a spreadsheet takes for the mark of a text.

    Numbers stay, also as text: ``-1`` is no formula.
    """
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) and not _is_number(value) else value


def unescaped(value: Value) -> Value | str:
    """The value of a cell that :func:`escaped` has written."""
    return value[1:] if isinstance(value, str) and value.startswith("'") and FORMULA.match(value) else value


def _is_number(text: str) -> bool:
    """The whole text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
