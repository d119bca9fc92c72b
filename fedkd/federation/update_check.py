"""The check of a client's reply against what the server asked for. A reply that fails it never reaches the aggregation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType

from fedkd.errors import one_line
from fedkd.federation import serialization
from fedkd.metrics.accuracy import NUM_CORRECT

Arrays = Mapping[str, np.ndarray]
"""Arrays by the names of a record: ``part:key``."""


@dataclass(frozen=True)
class ExpectedUpdate:
    """What the clients of one architecture send.

    Args:
        architecture: name of the network. None where clients do not send it.
        arrays: shape and type of every array, by name, after decompression.
        metrics: names of the training metrics, beside ``num-examples``.
        infinite: names of arrays of the update and of the client state that need not be finite, such as the mask of an attention layer.
        decompress: from the arrays of a message to those of the models that they stand for. None where messages are not compressed.
    """

    architecture: str | None
    arrays: Mapping[str, tuple[tuple[int, ...], str]]
    metrics: frozenset[str]
    infinite: frozenset[str] = frozenset()
    decompress: Callable[[Arrays], Arrays] | None = None


@dataclass(frozen=True)
class Refusal:
    """Why a reply is refused.

    Args:
        reason: the rule that the reply breaks and the value, in one line.
        diverged: values of the reply are not finite.
        loss: the loss of the reply, if it is not finite.
    """

    reason: str
    diverged: bool = False
    loss: float | None = None


@dataclass(eq=False)
class ReplyCheck:
    """The check of replies of one run.

    Args:
        expect: computes what the client of a training message sends. It is called once for each architecture, and again where an update
            differs, as an update may change its form from round to round. None if that cannot be told.
        architectures: the name of each client's network [K].
        num_train_examples: the number of each client's training examples [K].
        num_test_examples: the number of decisions in each client's local test set [K]: of its examples, next tokens, or classes.
        max_norm: upper bound of the L2 norm of an update, > 0. Of arrays that the server has sent, the difference counts. None for no
            bound.
    """

    expect: Callable[[Message], ExpectedUpdate | None]
    architectures: Sequence[str]
    num_train_examples: Sequence[int]
    num_test_examples: Sequence[int]
    max_norm: float | None = None
    _expected: dict[str, tuple[int, ExpectedUpdate | None]] = field(default_factory=dict)
    """By architecture the round for which the expectation was computed, and the expectation."""

    def __call__(self, message: Message, reply: Message, client_state: ArrayRecord | None = None) -> Refusal | None:
        """None if the reply is sound.

        Args:
            message: the message of the server.
            reply: the reply, which is no error.
            client_state: the client's new state, where a grid holds it.
        """
        if message.metadata.message_type == MessageType.EVALUATE:
            return self._check_evaluation(reply)
        client = message.metadata.dst_node_id
        records, metrics = reply.content.array_records, reply.content.metric_records
        if len(metrics) != 1 or (serialization.UPDATE not in records and len(records) != 1):
            return Refusal(f"its reply must hold one update and one record of metrics, got {sorted(reply.content)}")
        numbers = dict(next(iter(metrics.values())))
        arrays = serialization.to_arrays(records.get(serialization.UPDATE) or next(iter(records.values())))
        if refusal := self._check_numbers(numbers, client):
            return refusal
        expected = self._expectation(message, refresh=False)
        if expected is not None and (refusal := self._check_form(reply, arrays, numbers, expected)):
            expected = self._expectation(message, refresh=True)
            refusal = None if expected is None else self._check_form(reply, arrays, numbers, expected)
            if refusal:
                return refusal
        infinite = frozenset[str]() if expected is None else expected.infinite
        kept = {} if client_state is None else serialization.to_arrays(client_state)
        for what, checked in (("update", arrays), ("client state", kept)):
            for name in unsound_names(checked):
                if name not in infinite:
                    return Refusal(f"its {what} must be finite, got NaN or infinity in {name!r}", diverged=True)
        if self.max_norm is None:
            return None
        decompress = None if expected is None else expected.decompress
        return self._check_norm(message, arrays if decompress is None else decompress(arrays), decompress)

    def _expectation(self, message: Message, refresh: bool) -> ExpectedUpdate | None:
        """What the client of ``message`` sends, computed in this round if ``refresh``, otherwise as it was computed before."""
        architecture, server_round = self.architectures[message.metadata.dst_node_id], serialization.server_round_of(message.content)
        known = self._expected.get(architecture)
        if known is None or (refresh and known[0] != server_round):
            known = self._expected[architecture] = (server_round, self.expect(message))
        return known[1]

    def _check_evaluation(self, reply: Message) -> Refusal | None:
        """The counts of an evaluation must be possible with the local test set. The loss may be infinite."""
        numbers = serialization.metrics_of(reply.content) if reply.content.metric_records else {}
        total = numbers.get("num-examples")
        held = self.num_test_examples[reply.metadata.src_node_id]
        if not (is_count(total) and 0 <= total <= held):
            return Refusal(f"num-examples of its evaluation must be in 0..{held}, the number of its test examples, got {total!r}")
        for name in ("num-correct", *(name for name in numbers if name.startswith(NUM_CORRECT))):
            if not (is_count(correct := numbers.get(name)) and 0 <= correct <= total):
                return Refusal(f"{name} of its evaluation must be in 0..{total}, got {correct!r}")
        return None

    def _check_numbers(self, numbers: Mapping[str, object], client: int) -> Refusal | None:
        """``num-examples`` must be a count that the partition allows, and the loss must be finite."""
        count, held = numbers.get("num-examples"), self.num_train_examples[client]
        if not (is_count(count) and 1 <= count <= held):
            return Refusal(f"num-examples of its update must be in 1..{held}, the number of its training examples, got {count!r}")
        loss = numbers.get("loss")
        if isinstance(loss, int | float) and not np.isfinite(loss):
            return Refusal(f"its loss must be finite, got {loss}", diverged=True, loss=loss)
        return None

    def _check_form(self, reply: Message, arrays: Arrays, numbers: Mapping[str, object], expected: ExpectedUpdate) -> Refusal | None:
        """Architecture, names of metrics, and names, shapes and types of arrays must be those that were asked for."""
        if expected.architecture is not None:
            info = reply.content.config_records.get(serialization.CLIENT_INFO, ConfigRecord())
            if info.get("architecture") != expected.architecture:
                return Refusal(f"its architecture must be {expected.architecture!r}, got {info.get('architecture')!r}")
        if numbers.keys() - {"num-examples"} != expected.metrics or not all(isinstance(value, int | float) for value in numbers.values()):
            return Refusal(f"its metrics must be one number each for {sorted(expected.metrics)}, got {sorted(numbers)}")
        if expected.decompress is not None:
            try:
                arrays = expected.decompress(arrays)
            except (KeyError, ValueError, RuntimeError) as error:
                return Refusal(f"its update must be one that can be decompressed: {one_line(error)}")
        if arrays.keys() != expected.arrays.keys():
            lacking, more = sorted(expected.arrays.keys() - arrays.keys()), sorted(arrays.keys() - expected.arrays.keys())
            return Refusal(f"its update must have the arrays that were asked for, got none of {lacking} and also {more}")
        for name, form in expected.arrays.items():
            if (got := form_of(arrays[name])) != form:
                return Refusal(f"{name!r} of its update must be of shape {form[0]} and type {form[1]}, got {got[0]} and {got[1]}")
        return None

    def _check_norm(self, message: Message, arrays: Arrays, decompress: Callable[[Arrays], Arrays] | None) -> Refusal | None:
        """The L2 norm of the update must be at most ``max_norm``."""
        sent: Arrays = {}
        for record in message.content.array_records.values():
            sent = {**sent, **serialization.to_arrays(record)}
        sent = sent if decompress is None else decompress(sent)
        squares = 0.0
        for name, values in arrays.items():
            if np.issubdtype(values.dtype, np.floating):
                before = sent.get(name)
                change = values if before is None or before.shape != values.shape else values - before
                squares += float(np.square(change, dtype=np.float64).sum())
        norm = squares**0.5
        if self.max_norm is not None and norm > self.max_norm:
            return Refusal(f"the L2 norm of its update must be at most {self.max_norm} (max_update_norm), got {norm:.6g}")
        return None


def is_count(value: object) -> TypeGuard[int]:
    """``value`` is a whole number and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def form_of(values: np.ndarray) -> tuple[tuple[int, ...], str]:
    """Shape and type of an array."""
    return tuple(values.shape), serialization.dtype_name(values.dtype)


def unsound_names(arrays: Arrays) -> list[str]:
    """The names of the arrays that hold NaN or infinity.

    The sum of squares tells in one fast pass that all values are finite. Only where it overflows, each value is looked at.
    """
    found = []
    with np.errstate(all="ignore"):
        for name, values in arrays.items():
            if values.dtype.kind == "f":
                flat = values.ravel()
                if not np.isfinite(np.dot(flat, flat)) and not np.isfinite(flat).all():
                    found.append(name)
    return found
