"""Texts in cells of CSV files, written so that no spreadsheet reads a formula from a name of a class, a client or a file."""

import re
from typing import TypeVar

Value = TypeVar("Value")

FORMULA = re.compile(r"'*[=+\-@\t\r\n].", re.DOTALL)
"""The beginning of a text that a spreadsheet may compute, or of a text that :func:`escaped` has changed."""


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
