"""State to Flower's records and back, and the bytes of it."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from flwr.app import ArrayRecord, Message

from fedkd.types import State, Tensors, Update

SHARED, UPDATE, METRICS, OWN, ABOUT = "shared", "update", "metrics", "own", "about"
"""Names of the records: what the server broadcasts; a client's answer in tensors, in numbers and in words; its memory."""


def flatten(state: State) -> Tensors:
    """``{part: {key: tensor}}`` to ``{"part:key": tensor}``."""
    return {f"{part}:{key}": value for part, tensors in state.items() for key, value in tensors.items()}


def unflatten(tensors: Mapping[str, torch.Tensor]) -> State:
    """The inverse of :func:`flatten`; a part without tensors does not survive."""
    state: State = {}
    for name, value in tensors.items():
        part, _, key = name.partition(":")
        state.setdefault(part, {})[key] = value
    return state


def to_record(state: State) -> ArrayRecord:
    """One ArrayRecord with keys ``part:key``."""
    return ArrayRecord({name: value.detach().cpu().contiguous() for name, value in flatten(state).items()})


def from_record(record: ArrayRecord, device: torch.device | str = "cpu") -> State:
    """The state that :func:`to_record` packed, on ``device``."""
    return unflatten({name: torch.from_numpy(np.asarray(array.numpy())).to(device) for name, array in record.items()})


def payload(messages: Iterable[Message]) -> int:
    """Bytes of all arrays that ``messages`` carry: the numbers themselves, framing left out, a shared content counted each time."""
    contents = [message.content for message in messages if message.has_content()]
    arrays = [array for content in contents for record in content.array_records.values() for array in record.values()]
    return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in arrays)


def to_update(reply: Message) -> Update:
    """A client's reply as the server sees it."""
    content = reply.content
    metrics = {key: float(value) for key, value in content[METRICS].items() if key != "num-examples"}
    return Update(
        client=reply.metadata.src_node_id,
        num_examples=int(content[METRICS]["num-examples"]),
        architecture=str(content[ABOUT]["architecture"]),
        state=from_record(content[UPDATE]),
        metrics=metrics,
    )
