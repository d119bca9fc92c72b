"""Labels as files hold them (whole numbers, words, truth values), and their classes 0..C-1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fedkd.errors import ConfigError, require

Label = int | str
"""A label as a file holds it."""

MAX_LISTED = 10
"""Labels that a message lists."""


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Args:
        values: the label of each class in the data [C].
        names: the name of each class [C]; empty where the labels are 0..C-1 and have no names.
    """

    values: tuple[Label, ...]
    names: tuple[str, ...]

    def indices(self, labels: Sequence[Label], location: str) -> np.ndarray:  # [N], int64
        """The class 0..C-1 of each label.

        Args:
            labels: labels as the data hold them [N].
            location: their file, for messages.

        Raises:
            ConfigError: a label is of no class.
        """
        known = {value: index for index, value in enumerate(self.values)}
        if any(isinstance(label, str) for label in labels):  # words name the classes
            known |= {name: index for index, name in enumerate(self.names)}
        unknown = sorted({label for label in labels if label not in known}, key=_order)
        if unknown:
            number = sum(label not in known for label in labels)
            raise ConfigError(
                f"label_column must hold the classes of the training set ({_listed(self.values)}), got others in {number} rows of "
                f"{location}: {_listed(unknown)}; remove these rows, or add training examples of these classes"
            )
        return np.array([known[label] for label in labels], np.int64)


def find_classes(labels: Sequence[Label], names: Sequence[str], location: str) -> Classes:
    """The classes of a training set.

    Args:
        labels: the labels of the training examples.
        names: the names of classes 0..C-1 if the file has them; whole-number labels are then indices of names. If empty, the classes are
            the labels that occur, in ascending order.
        location: the file, for messages.

    Raises:
        ConfigError: words and numbers are mixed, or a label has no name.
    """
    kinds = {type(label) for label in labels}
    require(len(kinds) <= 1, "label_column", f"must hold numbers or words in {location}", "both")
    if names:
        by_word = kinds == {str}
        values: tuple[Label, ...] = tuple(names) if by_word else tuple(range(len(names)))
        rest = sorted(set(labels) - set(values), key=_order)
        rule = f"must hold {'the names' if by_word else 'indices of the'} {len(names)} names of classes in {location}"
        require(not rest, "label_column", rule, _listed(rest))
        return Classes(values, tuple(names))
    found = tuple(sorted(set(labels), key=_order))
    return Classes(found, () if found == tuple(range(len(found))) else tuple(map(str, found)))


def read_labels(column: pa.ChunkedArray, location: str, parameter: str = "label_column") -> list[Label]:
    """A column of labels: whole numbers as ``int``, words as ``str``, truth values as ``False`` and ``True``.

    Args:
        column: integers, whole floats, words, truth values, categories of these, or lists of one of these.
        location: the file, for messages.
        parameter: the key that names the column, for messages.

    Raises:
        ConfigError: the column has another type, or a label is missing, not whole, or negative.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    values = column.to_pylist()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        several = [row for row, value in enumerate(values) if value is None or len(value) != 1]
        rule = f"must hold one label per row in {location}"
        require(not several, parameter, rule, f"{kind}, with {len(several)} rows of another number (first: row {(several or [0])[0]})")
        values = [value[0] for value in values]
    missing = [row for row, value in enumerate(values) if value is None or value != value]
    rule = f"must hold a label in every row of {location}; remove rows without one"
    require(not missing, parameter, rule, f"{len(missing)} without (first: row {(missing or [0])[0]})")
    labels = [_label(value) for value in values]
    wrong = [row for row, label in enumerate(labels) if label is None]
    rule = f"must hold whole numbers, words or truth values in {location}"
    require(not wrong, parameter, rule, f"{kind}, with {values[wrong[0]]!r} in row {wrong[0]}" if wrong else None)
    negative = [row for row, label in enumerate(labels) if isinstance(label, int) and label < 0]
    if negative:
        raise ConfigError(
            f"{parameter} must hold labels >= 0 in {location}, got {labels[negative[0]]} in {len(negative)} of {len(labels)} rows, which "
            "stands for unlabelled examples; remove these rows, or use a labelled part as the test set"
        )
    return [label for label in labels if label is not None]


def _label(value: object) -> Label | None:
    """A value as a label; None if it is none."""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _order(label: Label) -> tuple[bool, Label]:
    """Numbers before words, each ascending."""
    return isinstance(label, str), label


def _listed(labels: Sequence[Label]) -> str:
    """Labels in a message."""
    more = f", ... ({len(labels)} in all)" if len(labels) > MAX_LISTED else ""
    return ", ".join(map(repr, labels[:MAX_LISTED])) + more
