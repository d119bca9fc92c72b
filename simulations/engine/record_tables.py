"""Records of many clients as tables, for the transfer between processes.

Clients whose records have the same names, types and shapes share one table. Its arrays are stacked over clients, so a table has one array
where the clients have many.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedkd.federation.serialization import to_array_record, to_arrays

Table = tuple[list[int], list[tuple[str, type, list[tuple[str, Any]]]]]
"""The clients K, and for each record its name, its type, and its columns by name. A column is an array [K, ...] or a list of K values."""


def pack(contents: Mapping[int, RecordDict]) -> list[Table]:
    """The records of each client as tables."""
    rows: dict[tuple, list[tuple[int, list[dict[str, Any]]]]] = {}
    for client, content in contents.items():
        cells = [to_arrays(record) if isinstance(record, ArrayRecord) else dict(record) for record in content.values()]
        form = tuple((name, type(record), tuple(map(cell_form, cell.items()))) for (name, record), cell in zip(content.items(), cells))
        rows.setdefault(form, []).append((client, cells))
    return [make_table(form, clients) for form, clients in rows.items()]


def cell_form(cell: tuple[str, Any]) -> tuple:
    """The name of a cell, and the type and shape of an array. Clients of one table agree in these."""
    name, value = cell
    return (name, value.dtype.str, value.shape) if isinstance(value, np.ndarray) else (name,)


def make_table(form: tuple, rows: list[tuple[int, list[dict[str, Any]]]]) -> Table:
    """The table of clients whose records have the same form."""
    records = []
    for place, (record, kind, columns) in enumerate(form):
        gather = np.stack if kind is ArrayRecord else list
        records.append((record, kind, [(column[0], gather([cells[place][column[0]] for _, cells in rows])) for column in columns]))
    return [client for client, _ in rows], records


def unpack(tables: list[Table]) -> dict[int, RecordDict]:
    """The records of each client, in the order of the tables. Arrays are views of the tables."""
    contents: dict[int, RecordDict] = {}
    for clients, records in tables:
        for row, client in enumerate(clients):
            content = contents[client] = RecordDict()
            for name, kind, columns in records:
                place = (row, ...) if kind is ArrayRecord else row  # with the ellipsis a single number stays an array
                content[name] = make_record(kind, {column: values[place] for column, values in columns})
    return contents


def make_record(kind: type, cells: dict[str, Any]) -> ArrayRecord | MetricRecord | ConfigRecord:
    """A record of the given type."""
    return to_array_record(cells) if kind is ArrayRecord else kind(cells)
