"""CSV files that grow during a run: rows are appended and flushed, columns are added, and rows after a checkpoint are cut.

Texts are written by :func:`escaped`, so that no spreadsheet reads a formula from a name of a class, a client or a file.

A file whose name ends in ``.gz`` is compressed: each round is a gzip member of its own, so that rows are appended and cut like those of a
plain file. ``zcat`` and pandas read such a file as one table.
"""

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal, TypeVar

from fedkd.files import sync_folder, write_atomically

Value = TypeVar("Value")

MAX_PLAIN_CLIENTS = 1000
"""Where more clients are tested in a round, the table of clients is compressed."""

BLOCK = 2**20
"""Bytes that are read at a time."""

FORMULA = re.compile(r"'*[=+\-@\t\r\n].", re.DOTALL)
"""The beginning of a text that a spreadsheet may compute, or of a text that :func:`escaped` has changed."""


def append(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Append ``rows`` under the header of the file, or under ``columns`` if the file is new, and wait until they are on disk."""
    header, is_new = header_of(path), not path.exists()
    with open(path, "ab") as file:
        file.write(_encoded(path, table(header or columns, rows, titled=header is None)))
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def header_of(path: Path) -> list[str] | None:
    """The columns of a CSV file; None if the file is missing or empty."""
    if not (path.exists() and path.stat().st_size):
        return None
    return next(csv.reader(_lines(path)), None)


def widen(path: Path, columns: list[str]) -> None:
    """Add columns to a CSV file. They are empty in the rows that exist."""
    rows = [{name: unescaped(value) for name, value in row.items()} for row in csv.DictReader(_lines(path))]
    _write(path, [f"{line}\n" for line in table(columns, rows, titled=True).split("\n")[:-1]])


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


def clients_file(folder: Path, num_tested: int = 0) -> Path:
    """The table of clients of a run folder: ``clients.csv``, or ``clients.csv.gz`` where there is one or the table is to be large.

    Args:
        folder: the run folder.
        num_tested: clients that are tested in a round, if the table may be new.
    """
    compressed = folder / "clients.csv.gz"
    return compressed if num_tested > MAX_PLAIN_CLIENTS or compressed.exists() else folder / "clients.csv"


def _write(path: Path, lines: Sequence[str]) -> None:
    """Replace a file by these lines, whose first one is the header."""
    rounds = ["".join(group) for _, group in groupby(lines[1:], lambda line: line.partition(",")[0])] if path.suffix == ".gz" else lines[1:]
    first = "".join([*lines[:1], *rounds[:1]])
    write_atomically(path, b"".join(_encoded(path, text) for text in [first, *rounds[1:]]) if lines else b"")


def _encoded(path: Path, text: str) -> bytes:
    """A text as bytes of a file, in a compressed file as a gzip member."""
    return gzip.compress(text.encode(), 6, mtime=0) if path.suffix == ".gz" else text.encode()


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends, one at a time. The last one may be incomplete."""
    if path.suffix == ".gz":
        rest = b""
        for member in _members(path):
            *complete, rest = (rest + member).split(b"\n")
            yield from (f"{line.decode()}\n" for line in complete)
        return
    with open(path, newline="\n", encoding="utf-8") as file:
        yield from file


def _members(path: Path) -> Iterator[bytes]:
    """The gzip members of a file, up to the first one that is incomplete or damaged. If rows are missing then, their check says so."""
    with open(path, "rb") as file:
        decoder, parts, rest = zlib.decompressobj(31), list[bytes](), file.read(BLOCK)
        while rest:
            try:
                parts.append(decoder.decompress(rest))
            except zlib.error:
                return
            rest = decoder.unused_data or file.read(BLOCK)
            if decoder.eof:
                yield b"".join(parts)
                decoder, parts = zlib.decompressobj(31), []


def complete_lines(path: Path) -> list[str]:
    """The lines of a CSV file with their ends, without a last line that is incomplete. Other line breaks of Unicode end no line."""
    return [line for line in _lines(path) if line.endswith("\n")]


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
    _write(path, [*lines[:1], *kept] if kept else [])


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
