"""The records of many clients as columns, for the way between processes: one array for all clients where each would bring many.

Clients whose records have the same form (names, types and shapes) share one table; its arrays are stacked.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedkd.federation.serialization import arrays_of, record_of

Table = tuple[list[int], list[tuple[str, type, list[tuple[str, Any]]]]]
"""Clients, and of each record its name, its type, and its columns by name."""


def pack(contents: Mapping[int, RecordDict]) -> list[Table]:
    """``{client: records}`` as tables."""
    rows: dict[tuple, list[tuple[int, list[dict[str, Any]]]]] = {}
    for client, content in contents.items():
        cells = [arrays_of(record) if isinstance(record, ArrayRecord) else dict(record) for record in content.values()]
        form = tuple((name, type(record), tuple(map(shape, cell.items()))) for (name, record), cell in zip(content.items(), cells))
        rows.setdefault(form, []).append((client, cells))
    return [table(form, clients) for form, clients in rows.items()]


def shape(item: tuple[str, Any]) -> tuple:
    """What must be alike of a cell for two clients to share a table."""
    name, value = item
    return (name, value.dtype.str, value.shape) if isinstance(value, np.ndarray) else (name,)


def table(form: tuple, rows: list[tuple[int, list[dict[str, Any]]]]) -> Table:
    """One table of clients of one form."""
    records = []
    for place, (record, kind, columns) in enumerate(form):
        gather = np.stack if kind is ArrayRecord else list
        records.append((record, kind, [(column[0], gather([cells[place][column[0]] for _, cells in rows])) for column in columns]))
    return [client for client, _ in rows], records


def unpack(tables: list[Table]) -> dict[int, RecordDict]:
    """The inverse of :func:`pack`, clients in the order of their tables; arrays are views of the tables."""
    contents: dict[int, RecordDict] = {}
    for clients, records in tables:
        for row, client in enumerate(clients):
            content = contents[client] = RecordDict()
            for name, kind, columns in records:
                place = (row, ...) if kind is ArrayRecord else row  # an array, even of no dimension
                content[name] = build(kind, {column: values[place] for column, values in columns})
    return contents


def build(kind: type, cells: dict[str, Any]) -> ArrayRecord | MetricRecord | ConfigRecord:
    """One record."""
    if kind is ArrayRecord:
        return record_of(cells)
    return kind(cells)
