"""Records of states: equal after a round trip, Flower's format, and sizes in bytes."""

import pickle

import flwr.app
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import array_record_from_proto, array_record_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content

from fedkd.federation import serialization
from simulations.engine.flower_compat import set_task_identity
from tests.small_runs import same_tensors

STATES = {
    "scalars": {"a": {"x": torch.tensor(3), "y": torch.tensor(0.1, dtype=torch.float64), "z": torch.tensor(True)}},
    "types": {
        "a": {str(t): torch.arange(6).reshape(2, 3).to(t) for t in (torch.int64, torch.int32, torch.uint8, torch.float32, torch.float64)}
    },
    "extremes": {"a": {"x": torch.tensor([float("inf"), -0.0, 1e-45]), "y": torch.tensor([2**63 - 1, -(2**63)])}},
    "no elements": {"a": {"x": torch.empty(0, 3)}},
    "two parts": {
        "model": {"fc.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))},
        "optimizer": {"exp_avg/fc.weight": torch.ones(1)},
    },
    "colons": {"a": {"b:c": torch.ones(2)}},
    "nothing": {},
}


@pytest.mark.parametrize("name", STATES)
def test_round_trip_bit_for_bit(name):
    state = STATES[name]
    decoded = serialization.from_record(serialization.to_record(state))
    assert same_tensors(decoded, state)
    for part, tensors in state.items():
        for key, value in tensors.items():
            assert decoded[part][key].dtype == value.dtype and decoded[part][key].shape == value.shape
            assert decoded[part][key].numpy().tobytes() == value.numpy().tobytes(), "including the sign of zero"


def test_views():
    whole = torch.arange(12.0).view(3, 4)
    state = {"a": {"column": whole[:, 1], "turned": whole.T}}
    assert same_tensors(serialization.from_record(serialization.to_record(state)), state)


def test_parts_without_tensors_are_dropped():
    assert serialization.unflatten(serialization.flatten({"empty": {}, "full": {"x": torch.ones(1)}})) == {"full": {"x": torch.ones(1)}}


def test_decoded_tensors_do_not_share_memory_with_the_record():
    record = serialization.to_record({"a": {"x": torch.zeros(3)}})
    serialization.from_record(record)["a"]["x"].add_(1)
    assert same_tensors(serialization.from_record(record), {"a": {"x": torch.zeros(3)}})


def test_payload_bytes():
    set_task_identity()
    content = RecordDict(
        {"a": ArrayRecord({"x": torch.zeros(3, 4), "n": torch.tensor(1)}), "b": ArrayRecord({"y": torch.zeros(5, dtype=torch.float64)})}
    )
    messages = [Message(content, dst_node_id=i, message_type="train") for i in range(3)]
    assert serialization.payload_bytes(messages[:1]) == 3 * 4 * 4 + 8 + 5 * 8
    assert serialization.payload_bytes(messages) == 3 * serialization.payload_bytes(messages[:1])
    assert serialization.payload_bytes([Message(Error(2, "no"), reply_to=messages[0])]) == 0 and serialization.payload_bytes([]) == 0


def test_tensors_do_not_share_memory():
    """Decoded tensors share memory neither with the state, nor with earlier results, nor with each other."""
    state = {"a": {"x": torch.zeros(3), "n": torch.tensor(0)}}
    record = serialization.to_record(state)
    record["b:x"] = record["a:x"]
    first, second = serialization.from_record(record), serialization.from_record(record)
    for tensor in (state["a"]["x"], state["a"]["n"], first["a"]["x"], first["b"]["x"], second["a"]["n"]):
        tensor.add_(1)
    assert same_tensors(second, {"a": {"x": torch.zeros(3), "n": torch.tensor(1)}, "b": {"x": torch.zeros(3)}})
    assert same_tensors(serialization.from_record(record)["a"], {"x": torch.zeros(3), "n": torch.tensor(0)})


NUMBERS = {
    "kernels": np.arange(54, dtype=np.float32).reshape(6, 1, 3, 3),
    "no dimension": np.array(7),
    "no elements": np.zeros((0, 3), np.float64),
    "bytes": np.arange(256, dtype=np.uint8),
    "truth": np.array([True, False]),
    "column by column": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "every other": np.arange(10)[::2],
    "not to be written": np.broadcast_to(np.float32(3), (2, 2)),
}


@pytest.fixture(params=NUMBERS)
def values(request) -> np.ndarray:
    """Arrays of all kinds."""
    return NUMBERS[request.param]


def test_array_equals_flower_array(values):
    actual, expected = serialization.Array(values), flwr.app.Array(values)
    assert isinstance(actual, flwr.app.Array) and type(actual).__qualname__ == type(expected).__qualname__, (
        "the class name is part of the bytes"
    )
    assert (actual.dtype, actual.shape, actual.stype, actual.data) == (expected.dtype, expected.shape, expected.stype, expected.data)
    assert actual.object_id == expected.object_id and actual.deflate() == expected.deflate()
    assert list(actual.children) == list(expected.children)


def test_numpy_is_a_copy(values):
    copy = serialization.Array(values).numpy()
    assert isinstance(copy, np.ndarray) and copy.flags.writeable and not np.shares_memory(copy, values)
    assert copy.dtype == values.dtype and copy.shape == values.shape and np.array_equal(copy, values)


def test_array_can_be_pickled(values):
    for protocol in (4, 5):
        decoded = pickle.loads(pickle.dumps(serialization.Array(values), protocol=protocol))
        assert (
            type(decoded) is serialization.Array
            and np.array_equal(decoded.numpy(), values)
            and decoded.data == serialization.Array(values).data
        )


def is_flower_array(record: ArrayRecord, values: np.ndarray) -> bool:
    """Whether a record has one array of Flower's own class with these values."""
    (array,) = record.values()
    return type(array) is flwr.app.Array and array.numpy().dtype == values.dtype and np.array_equal(array.numpy(), values)


def test_array_in_protocol_buffers(values):
    record = serialization.to_array_record({"a": values})
    assert is_flower_array(array_record_from_proto(array_record_to_proto(record)), values)
    assert array_record_to_proto(record) == array_record_to_proto(ArrayRecord({"a": flwr.app.Array(values)}))


def test_message_is_deflated_and_inflated(values):
    set_task_identity()
    content = RecordDict(
        {
            "broadcast": serialization.to_array_record({"a": values}),
            "config": ConfigRecord({"server-round": 3}),
            "m": MetricRecord({"x": 0.5}),
        }
    )
    message = Message(content, dst_node_id=5, message_type="train")
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    for part in contents.values():
        validate_object_content(part)
    decoded = inflate_object_from_contents(message.object_id, contents)
    assert (
        is_flower_array(decoded.content["broadcast"], values)
        and decoded.content["config"] == content["config"]
        and decoded.content["m"] == content["m"]
    )
    assert serialization.payload_bytes([decoded]) == serialization.payload_bytes([message]) == values.nbytes
    assert torch.equal(
        torch.from_numpy(values.copy()), serialization.from_record(ArrayRecord({"p:k": decoded.content["broadcast"]["a"]}))["p"]["k"]
    )


def test_shared_content_counts_for_each_message():
    set_task_identity()
    shared, again = (
        RecordDict({"a": serialization.to_array_record({"x": np.zeros(5), "y": np.zeros((2, 2), np.float32)})}) for _ in range(2)
    )
    messages = [Message(content, dst_node_id=i, message_type="train") for i, content in enumerate([shared, shared, again, RecordDict()])]
    assert [serialization.payload_bytes(messages[:number]) for number in range(5)] == [0, 56, 112, 168, 168]
