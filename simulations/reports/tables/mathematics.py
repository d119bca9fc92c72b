r"""Mathematics in printed names, such as ``$\alpha=0.1$``: drawn in figures, kept in LaTeX, and plain text in other tables."""

import re
from unicodedata import lookup

FORMULA = re.compile(r"\$[^$]+\$")
"""A formula between two dollar signs."""

COMMAND = re.compile(r"\\([A-Za-z]+) ?|[{}]")
"""A command, or a brace."""


def has_formula(text: str) -> bool:
    """Some part of the text stands between two dollar signs."""
    return FORMULA.search(text) is not None


def is_readable(text: str) -> bool:
    """Matplotlib can draw all formulas of the text."""
    from matplotlib.mathtext import MathTextParser

    try:
        MathTextParser("path").parse(text.replace("\n", " "))
    except ValueError:
        return False
    return True


def tidy(text: str) -> str:
    """The text with formulas that a line break cannot cut: ``$a = b$`` as ``$a{}={}b$``."""
    return FORMULA.sub(lambda found: re.sub(r"\s+", "{}", found[0]), text)


def plain(text: str) -> str:
    r"""The text without dollar signs, and with Greek letters in place of their commands: ``$\alpha=0.1$`` as ``α=0.1``."""
    return FORMULA.sub(lambda found: COMMAND.sub(_sign, found[0][1:-1]), text)


def _sign(found: re.Match[str]) -> str:
    """A Greek letter for its command; the name of any other command; nothing for a brace."""
    name = found[1]
    if name is None:
        return ""
    kind = "CAPITAL" if name[0].isupper() else "SMALL"
    try:
        return lookup(f"GREEK {kind} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}")
    except KeyError:
        return name
