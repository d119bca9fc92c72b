"""Tables as LaTeX, by pandas' Styler: rules of booktabs, the best in bold, the second underlined, mean ± interval."""

import re

import pandas as pd

from simulations.reports.tables.table import Table

SIGNS = {"±": r"$\pm$", ">": r"$>$", "<": r"$<$", "−": r"$-$"}

ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}

STYLES = {"best": "textbf:--rwrap;", "second": "underline:--rwrap;", "": ""}


def latex(table: Table) -> str:
    r"""The table as a ``table`` environment, to be read by ``\input``; the document loads ``booktabs``."""
    frame = pd.DataFrame({escaped(column.title): [_text(cell.text) for cell in column.cells] for column in table.columns})
    marks = [[STYLES[cell.mark] for cell in row] for row in table.rows]
    styler = frame.style.hide(axis="index").apply(lambda shown: pd.DataFrame(marks, shown.index, shown.columns), axis=None)
    body = styler.to_latex(
        hrules=True,
        column_format="".join("l" if column.text else "r" for column in table.columns),
        label=f"tab:{table.name}",
        caption=" ".join(part for part in (f"{escaped(table.title)}." if table.title else "", _text(caption(table))) if part),
        position="tb",
        position_float="centering",
    )
    return _with_rules(body, table)


def caption(table: Table) -> str:
    """The legend, in one paragraph, and what bold and underlined mean where there is any."""
    said = " ".join(table.legend.split())
    return f"{said} Bold: the best mean{' between two rules' if table.begins else ''}; underlined: the second." if table.marked else said


def escaped(text: str) -> str:
    """Text whose characters mean themselves."""
    return "".join(ESCAPES.get(sign, sign) for sign in text)


def _text(text: str) -> str:
    """A cell: escaped, its signs in mathematics, a minus where a number has one."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return "--" if text == "-" else "".join(SIGNS.get(sign, sign) for sign in escaped(text))


def _with_rules(body: str, table: Table) -> str:
    r"""A ``\midrule`` where a block begins."""
    lines = body.splitlines()
    first = next(i for i, line in enumerate(lines) if line == r"\midrule") + 1
    for row in reversed(table.begins):
        lines.insert(first + row, r"\midrule")
    return "\n".join(lines) + "\n"
