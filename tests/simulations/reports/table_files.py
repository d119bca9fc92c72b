"""Tables in files of a report, read back as rows of cells."""

import re
from pathlib import Path

SIGNS = {r"$\pm$": "±", r"$-$": "-", r"$>$": ">", r"$<$": "<", r"\_": "_", r"\%": "%"}


def latex_rows(path: Path) -> list[list[str]]:
    """The rows of a table in LaTeX, its header first: cells as they would be printed."""
    text = path.read_text(encoding="utf-8")
    assert text.count("{") == text.count("}") and r"\toprule" in text and r"\bottomrule" in text
    lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r"\\")]
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text).group(1)
    rows = [re.split(r"(?<!\\)&", line) for line in lines]
    assert {len(row) for row in rows} == {len(columns)}
    bare = [[re.sub(r"\\(textbf|underline)\{([^{}]*)\}", r"\2", cell).strip() for cell in row] for row in rows]
    for sign, shown in SIGNS.items():
        bare = [[cell.replace(sign, shown) for cell in row] for row in bare]
    return [["-" if cell == "--" else cell for cell in row] for row in bare]


def markdown_rows(path: Path, first: str) -> list[list[str]]:
    """The rows of the table that follows the line ``first`` in a Markdown file, its header first."""
    text = path.read_text(encoding="utf-8")
    assert first in text
    lines = text.partition(first)[2].strip().splitlines()
    block = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), None)]
    rows = [[cell.strip().strip("*_") for cell in line.split("|")[1:-1]] for line in block]
    return [rows[0], *rows[2:]]
