"""What travels is what is in memory, and its bytes are counted."""

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
from simulations.engine.flower_compat import identify
from tests.conftest import same, settle
from tests.processes import metrics, quick

GIVEN = (
    "engine=local",
    "num_clients=6",
    "clients_per_round=4",
    "rounds=2",
    "local_steps=2",
    "partition.alpha=1.0",
    "progress=false",
    "clients_per_vmap=1",
    "output=runs",
)
CLASSES, EMBEDDING, NOISE, HIDDEN = 10, 32, 32, 256

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
def test_a_state_comes_back_bit_for_bit(name):
    state = STATES[name]
    back = serialization.from_record(serialization.to_record(state))
    assert same(back, state)
    for part, tensors in state.items():
        for key, value in tensors.items():
            assert back[part][key].dtype == value.dtype and back[part][key].shape == value.shape
            assert back[part][key].numpy().tobytes() == value.numpy().tobytes(), "also the sign of zero"


def test_a_view_travels_as_what_it_shows():
    whole = torch.arange(12.0).view(3, 4)
    state = {"a": {"column": whole[:, 1], "turned": whole.T}}
    assert same(serialization.from_record(serialization.to_record(state)), state)


def test_a_part_without_tensors_does_not_survive():
    assert serialization.unflatten(serialization.flatten({"empty": {}, "full": {"x": torch.ones(1)}})) == {"full": {"x": torch.ones(1)}}


def test_what_came_back_can_be_written_without_changing_the_record():
    record = serialization.to_record({"a": {"x": torch.zeros(3)}})
    serialization.from_record(record)["a"]["x"].add_(1)
    assert same(serialization.from_record(record), {"a": {"x": torch.zeros(3)}})


def test_payload_counts_numbers_and_a_shared_content_once_a_client():
    identify()
    content = RecordDict(
        {"a": ArrayRecord({"x": torch.zeros(3, 4), "n": torch.tensor(1)}), "b": ArrayRecord({"y": torch.zeros(5, dtype=torch.float64)})}
    )
    messages = [Message(content, dst_node_id=i, message_type="train") for i in range(3)]
    assert serialization.payload_bytes(messages[:1]) == 3 * 4 * 4 + 8 + 5 * 8
    assert serialization.payload_bytes(messages) == 3 * serialization.payload_bytes(messages[:1])
    assert serialization.payload_bytes([Message(Error(2, "no"), reply_to=messages[0])]) == 0 and serialization.payload_bytes([]) == 0


def test_tensors_of_one_record_do_not_share_their_memory():
    """Of a state that was packed, of what was unpacked before, or of each other where one array stands twice."""
    state = {"a": {"x": torch.zeros(3), "n": torch.tensor(0)}}
    record = serialization.to_record(state)
    record["b:x"] = record["a:x"]
    first, second = serialization.from_record(record), serialization.from_record(record)
    for tensor in (state["a"]["x"], state["a"]["n"], first["a"]["x"], first["b"]["x"], second["a"]["n"]):
        tensor.add_(1)
    assert same(second, {"a": {"x": torch.zeros(3), "n": torch.tensor(1)}, "b": {"x": torch.zeros(3)}})
    assert same(serialization.from_record(record)["a"], {"x": torch.zeros(3), "n": torch.tensor(0)})


# ---------------------------------------------------------------------------------------------------------- Flower's Array
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
    """Numbers of all kinds."""
    return NUMBERS[request.param]


def test_an_array_is_flower_s_array_for_flower(values):
    ours, theirs = serialization.Array(values), flwr.app.Array(values)
    assert isinstance(ours, flwr.app.Array) and type(ours).__qualname__ == type(theirs).__qualname__, "the name is in the bytes of it"
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (theirs.dtype, theirs.shape, theirs.stype, theirs.data)
    assert ours.object_id == theirs.object_id and ours.deflate() == theirs.deflate()
    assert list(ours.children) == list(theirs.children)


def test_the_numbers_of_an_array_are_a_copy(values):
    copy = serialization.Array(values).numpy()
    assert isinstance(copy, np.ndarray) and copy.flags.writeable and not np.shares_memory(copy, values)
    assert copy.dtype == values.dtype and copy.shape == values.shape and np.array_equal(copy, values)


def test_an_array_survives_pickling(values):
    for protocol in (4, 5):
        back = pickle.loads(pickle.dumps(serialization.Array(values), protocol=protocol))
        assert type(back) is serialization.Array and np.array_equal(back.numpy(), values) and back.data == serialization.Array(values).data


def plain(record: ArrayRecord, values: np.ndarray) -> bool:
    """A record of one array of Flower's own class, with these numbers."""
    (array,) = record.values()
    return type(array) is flwr.app.Array and array.numpy().dtype == values.dtype and np.array_equal(array.numpy(), values)


def test_an_array_travels_in_protocol_buffers_as_flower_s_own(values):
    record = serialization.record_of({"a": values})
    assert plain(array_record_from_proto(array_record_to_proto(record)), values)
    assert array_record_to_proto(record) == array_record_to_proto(ArrayRecord({"a": flwr.app.Array(values)}))


def test_a_message_is_deflated_and_inflated_as_flower_does_between_machines(values):
    identify()
    content = RecordDict(
        {"shared": serialization.record_of({"a": values}), "config": ConfigRecord({"server-round": 3}), "m": MetricRecord({"x": 0.5})}
    )
    message = Message(content, dst_node_id=5, message_type="train")
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    for part in contents.values():
        validate_object_content(part)
    back = inflate_object_from_contents(message.object_id, contents)
    assert plain(back.content["shared"], values) and back.content["config"] == content["config"] and back.content["m"] == content["m"]
    assert serialization.payload_bytes([back]) == serialization.payload_bytes([message]) == values.nbytes
    assert torch.equal(
        torch.from_numpy(values.copy()), serialization.from_record(ArrayRecord({"p:k": back.content["shared"]["a"]}))["p"]["k"]
    )


def test_a_content_of_several_clients_counts_each_time_and_equal_ones_too():
    identify()
    shared, again = (RecordDict({"a": serialization.record_of({"x": np.zeros(5), "y": np.zeros((2, 2), np.float32)})}) for _ in range(2))
    messages = [Message(content, dst_node_id=i, message_type="train") for i, content in enumerate([shared, shared, again, RecordDict()])]
    assert [serialization.payload_bytes(messages[:number]) for number in range(5)] == [0, 56, 112, 168, 168]


# ---------------------------------------------------------------------------------------------------------- bytes of a round
def conv_net(size: int) -> int:
    """Parameters of the default network for one channel: 3x3 convolutions of stride 2 to 6 and 16 channels, with BatchNorm."""
    side = (size + 3) // 4
    return (9 * 6 + 6) + 2 * 6 + (9 * 6 * 16 + 16) + 2 * 16 + (16 * side * side * EMBEDDING + EMBEDDING) + (EMBEDDING * CLASSES + CLASSES)


MODEL = conv_net(8)
STATISTICS = 2 * (6 + 16) * 4 + 2 * 8  # running means and variances, and two counts of batches in 64 bits
GENERATOR = ((NOISE + CLASSES) * HIDDEN + HIDDEN) + 2 * HIDDEN + (HIDDEN * EMBEDDING + EMBEDDING)
GENERATOR_STATISTICS = 2 * HIDDEN * 4 + 8
MORE_DOWN = {"fedgen": GENERATOR * 4 + GENERATOR_STATISTICS + CLASSES * 4, "fedavg": 0, "fedprox": 0, "feddistill": CLASSES * CLASSES * 4}
MORE_UP = {"fedgen": CLASSES * 8, "fedavg": 0, "fedprox": 0, "feddistill": CLASSES * CLASSES * 4}


def traffic(where, *options: str) -> tuple[set[str], set[str]]:
    ended = quick(where, *GIVEN, *options)
    assert ended.code == 0, ended.err
    table = metrics(ended.folder)
    return set(table["downlink_bytes"]), set(table["uplink_bytes"])


def test_the_network_is_as_counted():
    home, _ = settle()
    assert sum(p.numel() for p in home.model.parameters()) == MODEL


@pytest.mark.parametrize("strategy", MORE_DOWN)
def test_bytes_with_statistics_that_stay(tmp_path, strategy):
    assert traffic(tmp_path, f"strategy={strategy}") == (
        {str(4 * (MODEL * 4 + MORE_DOWN[strategy]))},
        {str(4 * (MODEL * 4 + MORE_UP[strategy]))},
    )


def test_bytes_with_statistics_that_travel(tmp_path):
    each = 4 * (MODEL * 4 + STATISTICS)
    assert traffic(tmp_path, "strategy=fedavg", "strategy.batchnorm=averaged") == ({str(each)}, {str(each)})


def test_bytes_in_double_precision(tmp_path):
    assert traffic(tmp_path, "strategy=fedavg", "precision=float64") == ({str(4 * MODEL * 8)}, {str(4 * MODEL * 8)})


def test_bytes_of_logits_alone(tmp_path):
    assert traffic(tmp_path, "strategy=feddistill_logits") == ({str(4 * CLASSES * CLASSES * 4)}, {str(4 * CLASSES * CLASSES * 4)})
