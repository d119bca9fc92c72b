"""CSV files that grow during a run: rows are appended and flushed, columns are added, and rows after a checkpoint are cut."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedkd.files import sync_folder, write_atomically


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
        rows = list(csv.DictReader(file))
    write_atomically(path, table(columns, rows, titled=True).encode())


def table(columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, titled: bool) -> str:
    """Rows as CSV text, with or without the header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    if titled:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def complete_lines(path: Path) -> list[str]:
    """The lines of a CSV file with their ends, without a last line that is incomplete. Other line breaks of Unicode end no line."""
    with open(path, newline="", encoding="utf-8") as file:
        return [f"{line}\n" for line in file.read().split("\n")[:-1]]


def cut(path: Path, server_round: int) -> None:
    """Remove the rows after ``server_round``, and a last line that is incomplete."""
    if not path.exists():
        return
    lines = complete_lines(path)
    kept = [line for line in lines[1:] if int(line.split(",", 1)[0]) <= server_round]
    write_atomically(path, "".join([*lines[:1], *kept] if kept else []).encode())
