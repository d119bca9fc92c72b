"""State to Flower's records and back, and the bytes of it."""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from io import BytesIO

import flwr.app
import numpy as np
import torch
from flwr.app import ArrayRecord, Message, RecordDict

from fedkd.types import State, Update, flatten, unflatten

BROADCAST, UPDATE, METRICS, CLIENT_STATE, CLIENT_INFO = "shared", "update", "metrics", "own", "about"
"""Names of the records: what the server broadcasts; a client's answer in tensors, in numbers and in words; its memory."""


name_of = lru_cache(str)


class Array(flwr.app.Array):
    """Flower's Array with its numbers at hand: they become bytes when somebody asks for bytes, which within one machine nobody does.

    Args:
        values: must not be changed afterwards.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.__dict__.update(dtype=name_of(values.dtype), shape=values.shape, stype="numpy.ndarray", values=values)

    @property
    def data(self) -> bytes:
        """The serialised array, as Flower's own has it."""
        buffer = BytesIO()
        np.save(buffer, self.__dict__["values"], allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> np.ndarray:
        """A copy of the numbers."""
        return self.__dict__["values"].copy()


def record_of(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """An ArrayRecord of arrays that nobody will change."""
    record = ArrayRecord()
    for name, values in arrays.items():
        record[name] = Array(values)
    return record


def arrays_of(record: ArrayRecord) -> dict[str, np.ndarray]:
    """The arrays of a record, not to be changed."""
    return {name: array.__dict__["values"] if isinstance(array, Array) else array.numpy() for name, array in record.items()}


def to_record(state: State) -> ArrayRecord:
    """One ArrayRecord with keys ``part:key``; the numbers are copied."""
    return record_of({name: np.array(value.detach().cpu().numpy(), order="C") for name, value in flatten(state).items()})


def from_record(record: ArrayRecord, device: torch.device | str = "cpu") -> State:
    """The state that :func:`to_record` packed, on ``device``; the numbers are copied."""
    return unflatten({name: torch.from_numpy(np.asarray(array.numpy())).to(device) for name, array in record.items()})


def payload_bytes(messages: Iterable[Message]) -> int:
    """Bytes of all arrays that ``messages`` carry: the numbers themselves, framing left out, a shared content counted each time."""
    return sum(message_bytes(messages))


def message_bytes(messages: Iterable[Message]) -> list[int]:
    """Bytes of the arrays that each of ``messages`` carries; none where it is an error."""
    known: dict[int, int] = {}
    contents = [message.content if message.has_content() else RecordDict() for message in messages]
    return [known[id(content)] if id(content) in known else known.setdefault(id(content), content_bytes(content)) for content in contents]


def content_bytes(content: RecordDict) -> int:
    """Bytes of the arrays of one content."""
    arrays = (array for record in content.array_records.values() for array in record.values())
    return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in arrays)


def to_update(reply: Message) -> Update:
    """A client's reply as the server sees it."""
    content = reply.content
    metrics = {key: float(value) for key, value in content[METRICS].items() if key != "num-examples"}
    return Update(
        client=reply.metadata.src_node_id,
        num_examples=int(content[METRICS]["num-examples"]),
        architecture=str(content[CLIENT_INFO]["architecture"]),
        state=from_record(content[UPDATE]),
        metrics=metrics,
    )
