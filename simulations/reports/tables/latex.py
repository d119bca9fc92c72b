"""Tables in LaTeX, written by pandas' Styler: booktabs rules, the best mean in bold, the second underlined."""

import re
from unicodedata import name

import pandas as pd

from simulations.reports.tables.mathematics import FORMULA
from simulations.reports.tables.table import Table

GREEK = {sign: f"$\\{name(sign).rpartition(' ')[2].lower().replace('lamda', 'lambda')}$" for sign in "αβγδεζηθκλμνξπρστφχψω"}

SIGNS = {"±": r"$\pm$", ">": r"$>$", "<": r"$<$", "−": r"$-$", "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$"} | GREEK
"""Signs that stand in mathematics; Greek letters can stand in names that the user gives."""

ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}
"""Characters that LaTeX would read as commands."""

STYLES = {"best": "textbf:--rwrap;", "second": "underline:--rwrap;", "": ""}
"""The style of a cell, as pandas writes it."""


COLUMN_CHARACTERS = 46
"""Characters of a row that fit into one column of a two-column paper, at 10 points."""

FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""The command that scales what is wider than the column or the page to its width, and leaves all else as it is."""


def latex(table: Table) -> str:
    r"""The table as a ``table`` environment, to be read by ``\input``. The document loads the packages ``booktabs`` and ``graphicx``.

    A table that is too wide for one column of a two-column paper is a ``table*`` across both. What is wider than the page is scaled to it.
    """
    frame = pd.DataFrame({_text(column.title): [_text(cell.text) for cell in column.cells] for column in table.columns})
    marks = [[STYLES[cell.mark] for cell in row] for row in table.rows]
    styler = frame.style.hide(axis="index").apply(lambda shown: pd.DataFrame(marks, shown.index, shown.columns), axis=None)
    body = styler.to_latex(
        hrules=True,
        column_format="".join("l" if column.text else "r" for column in table.columns),
        label=f"tab:{table.name}",
        caption=_text(" ".join(part for part in (f"{table.title}." if table.title else "", caption(table)) if part)),
        position="tb",
        position_float="centering",
        environment="table" if characters(table) <= COLUMN_CHARACTERS else "table*",
    )
    body = _with_rules(body, table)
    return body.replace(r"\begin{tabular}", f"{FIT}\n\\begin{{tabular}}").replace(r"\end{tabular}", r"\end{tabular}}")


def characters(table: Table) -> int:
    """The characters of the widest possible row, with two for each gap between columns."""
    return sum(2 + max(len(text) for text in (column.title, *(cell.text for cell in column.cells))) for column in table.columns)


def caption(table: Table) -> str:
    """The legend in one paragraph, with the meaning of bold and underlined cells."""
    return " ".join([*table.legend.split(), *table.marks.split()])


def escaped(text: str) -> str:
    """Text in which every character stands for itself."""
    return "".join(ESCAPES.get(sign, sign) for sign in text)


def _text(text: str) -> str:
    """A cell: escaped, its signs in mathematics, a minus sign before numbers. Formulas of the user stay as they are."""
    if found := FORMULA.search(text):
        return _text(text[: found.start()]) + found[0] + _text(text[found.end() :])
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return "--" if text == "-" else "".join(SIGNS.get(sign, sign) for sign in escaped(text))


def _with_rules(body: str, table: Table) -> str:
    r"""The LaTeX code with a ``\midrule`` where a block begins."""
    lines = body.splitlines()
    first = next(i for i, line in enumerate(lines) if line == r"\midrule") + 1
    for row in reversed(table.begins):
        lines.insert(first + row, r"\midrule")
    return "\n".join(lines) + "\n"
