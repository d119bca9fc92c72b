"""Tables as Markdown that reads as plain text too."""

from collections.abc import Mapping, Sequence


def markdown_table(columns: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table, text to the left and numbers to the right."""
    cells = [[title, *(str(cell).replace("|", "\\|") for cell in column)] for title, column in columns.items()]
    widths = [max(2, *map(len, column)) for column in cells]
    text = [title in ("strategy", "less", "network", "setting") for title in columns]
    rows = [[c.ljust(w) if t else c.rjust(w) for c, w, t in zip(row, widths, text, strict=True)] for row in zip(*cells, strict=True)]
    rows.insert(1, ["-" * w if t else "-" * (w - 1) + ":" for w, t in zip(widths, text, strict=True)])  # the colon aligns right
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
