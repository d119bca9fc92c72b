"""Conversion between states and Flower's records, and the size of messages in bytes.

A state ``{part: {key: tensor}}`` becomes one ArrayRecord with the keys ``part:key``. Within one machine the arrays are passed on as NumPy
arrays. They are encoded as bytes only where a message leaves the machine.
"""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from io import BytesIO
from typing import cast

import flwr.app
import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedkd.types import State, Update, flatten, unflatten

BROADCAST = "broadcast"
"""Name of the record with the state that the server sends to all clients of a round."""

UPDATE = "update"
"""Name of the record with the state that a client sends to the server."""

METRICS = "metrics"
"""Name of the record with a client's numbers: ``num-examples``, and the means of its training metrics or the counts of its evaluation."""

CLIENT_INFO = "client_info"
"""Name of the record with ``architecture``, training time in ``seconds``, and the process id of the ``worker``."""

CLIENT_STATE = "client_state"
"""Name of the record with a client's own state. It is not part of the traffic between client and server."""

dtype_name = lru_cache(str)


class Array(flwr.app.Array):
    """A Flower array that holds NumPy values. They are encoded as bytes only when ``data`` is read.

    Args:
        values: the values. They must not be changed afterwards.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.__dict__.update(dtype=dtype_name(values.dtype), shape=values.shape, stype="numpy.ndarray", values=values)

    @property
    def data(self) -> bytes:  # type: ignore[override]  # an attribute in Flower, computed here
        """The values in NumPy's file format, the same bytes as in Flower's own class."""
        buffer = BytesIO()
        np.save(buffer, self.__dict__["values"], allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> np.ndarray:
        """A copy of the values."""
        return self.__dict__["values"].copy()


def to_array_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """An ArrayRecord of arrays, which must not be changed afterwards."""
    record = ArrayRecord()
    for name, values in arrays.items():
        record[name] = Array(values)
    return record


def to_arrays(record: ArrayRecord) -> dict[str, np.ndarray]:
    """The arrays of a record without copies. They must not be changed."""
    return {name: array.__dict__["values"] if isinstance(array, Array) else array.numpy() for name, array in record.items()}


def array_record(content: RecordDict, name: str) -> ArrayRecord:
    """The ArrayRecord called ``name`` of a message's content."""
    record = content[name]
    assert isinstance(record, ArrayRecord), f"{name} is an ArrayRecord"
    return record


def to_record(state: State) -> ArrayRecord:
    """A state as one ArrayRecord with the keys ``part:key``. The tensors are copied."""
    return to_array_record({name: np.array(value.detach().cpu().numpy(), order="C") for name, value in flatten(state).items()})


def from_record(record: ArrayRecord, device: torch.device | str = "cpu") -> State:
    """The state of a record that :func:`to_record` made, on ``device``. The arrays are copied."""
    return unflatten({name: torch.from_numpy(np.asarray(array.numpy())).to(device) for name, array in record.items()})


def payload_bytes(messages: Iterable[Message]) -> int:
    """The total size in bytes of all arrays in ``messages``, without framing. Content that several messages share counts for each."""
    return sum(message_bytes(messages))


def message_bytes(messages: Iterable[Message]) -> list[int]:
    """The size in bytes of the arrays in each message, 0 for errors."""
    sizes: dict[int, int] = {}
    contents = [message.content if message.has_content() else RecordDict() for message in messages]
    return [sizes[id(content)] if id(content) in sizes else sizes.setdefault(id(content), content_bytes(content)) for content in contents]


def content_bytes(content: RecordDict) -> int:
    """The size in bytes of all arrays of one message's content."""
    arrays = (array for record in content.array_records.values() for array in record.values())
    return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in arrays)


def server_round_of(content: RecordDict) -> int:
    """The server round in a message of the server, from its record ``config``."""
    config = content["config"]
    assert isinstance(config, ConfigRecord)
    number = config["server-round"]
    assert isinstance(number, int)
    return number


def data_round_of(content: RecordDict) -> int:
    """The round whose local test sets an evaluation message asks for: ``data-round`` of its record ``config``, or the server round."""
    config = content["config"]
    assert isinstance(config, ConfigRecord)
    number = config.get("data-round", config["server-round"])
    assert isinstance(number, int)
    return number


def metrics_of(content: RecordDict) -> dict[str, float]:
    """The numbers in the first MetricRecord of a reply, without lists."""
    record = next(iter(content.metric_records.values()))
    return {name: value for name, value in record.items() if isinstance(value, int | float)}


def to_update(reply: Message) -> Update:
    """A client's reply as the server sees it."""
    numbers, info = metrics_of(reply.content), reply.content[CLIENT_INFO]
    assert isinstance(info, ConfigRecord)
    return Update(
        client=reply.metadata.src_node_id,
        num_examples=int(numbers.pop("num-examples")),
        architecture=str(info["architecture"]),
        state=from_record(array_record(reply.content, UPDATE)),
        metrics={name: float(value) for name, value in numbers.items()},
        num_steps=int(cast(int, info.get("num-steps", 0))),
    )
