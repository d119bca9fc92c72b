"""Rows of CSV files that grow while a run goes on: appended and flushed, widened, and cut back to a checkpoint."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedkd.files import write_atomically


def append(path: Path, columns: Sequence[str], rows: list[Mapping[str, float]]) -> None:
    """Append ``rows`` under the header that the file has, or ``columns`` if it is new, and flush."""
    header = header_of(path)
    with open(path, "a", newline="") as file:
        file.write(table(header or columns, rows, titled=header is None))
        file.flush()
        os.fsync(file.fileno())


def header_of(path: Path) -> list[str] | None:
    """The columns of a CSV file; None where there is none, or it is empty."""
    if not (path.exists() and path.stat().st_size):
        return None
    with open(path, newline="") as file:
        return next(csv.reader(file))


def widen(path: Path, columns: list[str]) -> None:
    """Give a CSV file more columns, empty in the rows that it has."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    write_atomically(path, table(columns, rows, titled=True).encode())


def table(columns: Sequence[str], rows: Iterable[Mapping[str, float]], *, titled: bool) -> str:
    """Rows as CSV, with or without the header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    if titled:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def cut(path: Path, server_round: int) -> None:
    """Remove the rows behind ``server_round``, and a last line that was not written to its end."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in lines[1:] if int(line.split(",", 1)[0]) <= server_round]
    write_atomically(path, "".join([*lines[:1], *kept] if kept else []).encode())
