"""Rows of plain values as text in columns, as Markdown, or as JSON."""

import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def columns(rows: Sequence[Row], names: Sequence[str], *, header: bool = True, right: Sequence[str] = (), width: int | None = None) -> str:
    """Rows in columns. The last column takes the rest of the line and is wrapped there.

    Args:
        rows: one line each.
        names: keys of the rows, in order; they are the header.
        header: print the names above the columns.
        right: names of columns whose cells stand at the right.
        width: characters of a line; None takes the terminal's, and 140 where there is none.
    """
    width = shutil.get_terminal_size((140, 24)).columns if width is None else width
    cells = [[text(row.get(name)) for name in names] for row in rows]
    lines = [list(names), *cells] if header else cells
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    start = sum(widths[:-1]) + 2 * (len(names) - 1)
    room = max(24, width - start)
    found = []
    for line in lines:
        padded = [cell.rjust(size) if name in right else cell.ljust(size) for name, cell, size in zip(names[:-1], line, widths)]
        last = line[-1].rjust(min(widths[-1], room)) if names[-1] in right else line[-1]
        wrapped = textwrap.wrap(last, room, break_long_words=False, break_on_hyphens=False, drop_whitespace=True) or [""]
        found.append("  ".join([*padded, wrapped[0] if names[-1] not in right else last]).rstrip())
        found += [" " * start + more for more in wrapped[1:]]
    return "\n".join(found)


def paragraphs(rows: Sequence[Row], width: int | None = None) -> str:
    """Keys with value and type, and below each, indented, the meaning. Rows have ``key, value, type, meaning``."""
    width = shutil.get_terminal_size((100, 24)).columns if width is None else width
    names = [f"{row['key']}={text(row['value'])}" for row in rows]
    size = min(max(map(len, names), default=0), 48)
    found = []
    for name, row in zip(names, rows):
        found.append(f"{name.ljust(size)}  {row['type']}".rstrip())
        found += textwrap.wrap(row["meaning"], max(40, width), initial_indent="    ", subsequent_indent="    ")
    return "\n".join(found)


def markdown(rows: Sequence[Row], names: Sequence[str], code: Sequence[str] = ()) -> str:
    """A Markdown table; the columns ``code`` are set as code."""
    found = [list(names), ["---"] * len(names)]
    for row in rows:
        cells = [text(row.get(name)).replace("|", r"\|") for name in names]
        found.append([f"`{cell}`" if name in code and cell else cell for name, cell in zip(names, cells)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in found)


def as_json(value: Any) -> str:
    """JSON with an indentation of one; paths as text."""
    return json.dumps(value, indent=1, default=str, ensure_ascii=False)


def text(value: Any) -> str:
    """A value in a cell."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {text(one)}' for key, one in value.items())}}}"
    return str(value)
