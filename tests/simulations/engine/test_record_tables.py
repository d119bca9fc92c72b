"""Records of many clients as tables, and pickled models, are equal after a round trip."""

import pickle
from itertools import permutations

import flwr.app
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedkd.federation.messaging import CLIENT_RAISED
from fedkd.federation.serialization import to_array_record
from fedkd.models.cnn import FedGenCNN
from fedkd.models.ensemble import Ensemble
from fedkd.types import Task
from simulations.engine.record_tables import pack, unpack
from simulations.engine.worker import pickle_model
from tests.small_runs import same_tensors

TYPES = ("float32", "float64", "int64", "uint8", "bool")


SHAPES = {"vector": (3,), "kernels": (2, 1, 3, 3), "no dimension": (), "nothing": (0,), "rows of nothing": (2, 0)}


def array_of(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """An array of any type, with negative zeros."""
    drawn = np.asarray(np.random.default_rng(seed).integers(0, 100, shape)).astype(dtype)
    return -drawn if dtype.startswith("float") else drawn


def training_reply(client: int, classes: int = 4, width: int = 3) -> RecordDict:
    """The records of a client after training."""
    update = to_array_record(
        {"model:weight": array_of((width, 2), "float32", client), "labels:counts": array_of((classes,), "int64", client)}
    )
    client_state = to_array_record({"client:last_round": np.array(client), "statistics:mean": array_of((width,), "float64", client)})
    metrics = MetricRecord({"num-examples": 10 + client, "loss": client / 3})
    return RecordDict(
        {"update": update, "metrics": metrics, "client_info": ConfigRecord({"architecture": f"net-{client}"}), "client_state": client_state}
    )


def error_reply(client: int) -> RecordDict:
    """The records of a client that raised an exception."""
    return RecordDict({"error": ConfigRecord({"code": CLIENT_RAISED, "reason": f"Traceback ...\nKeyError: {client}"})})


def evaluation_reply(client: int) -> RecordDict:
    """The records of a client after an evaluation, with lists of another length for each client."""
    return RecordDict({"metrics": MetricRecord({"num-examples": client, "correct": [client] * client, "losses": [0.5, float(client)]})})


FORMS = {
    "trained": training_reply,
    "of another shape": lambda client: training_reply(client, classes=5),
    "of another width": lambda client: training_reply(client, width=7),
    "failed": error_reply,
    "evaluated": evaluation_reply,
    "nothing": lambda client: RecordDict(),
    "empty records": lambda client: RecordDict({"update": ArrayRecord(), "metrics": MetricRecord(), "client_info": ConfigRecord()}),
    "words": lambda client: RecordDict(
        {"c": ConfigRecord({"a": "b", "n": client, "f": 0.5, "yes": True, "raw": b"\0\xff", "s": ["x"] * client})}
    ),
}


def pickle_round_trip(contents: dict[int, RecordDict]) -> dict[int, RecordDict]:
    """Pack, pickle, unpickle and unpack."""
    return unpack(pickle.loads(pickle.dumps(pack(contents), protocol=5)))


def equal_contents(left: RecordDict, right: RecordDict) -> bool:
    """Whether two contents have equal records in the same order, arrays bit for bit."""
    if list(left) != list(right) or [type(record) for record in left.values()] != [type(record) for record in right.values()]:
        return False
    return all(equal_records(left[name], right[name]) for name in left)


def equal_records(left, right) -> bool:
    """Whether two records of one type are equal."""
    if not isinstance(left, ArrayRecord):
        return dict(left) == dict(right) and all(type(left[key]) is type(right[key]) for key in left)
    if list(left) != list(right):
        return False
    pairs = [(left[name].numpy(), right[name].numpy()) for name in left]
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


def check_round_trip(contents: dict[int, RecordDict]) -> None:
    """Check that all contents are equal after a round trip, with pickle and without."""
    for decoded in (unpack(pack(contents)), pickle_round_trip(contents)):
        assert decoded.keys() == contents.keys() and all(equal_contents(decoded[client], contents[client]) for client in contents)


@pytest.mark.parametrize("form", FORMS)
def test_clients_of_equal_form_share_a_table(form):
    contents = {client: FORMS[form](client) for client in (4, 0, 11)}
    (table,) = pack(contents)
    assert table[0] == [4, 0, 11]
    check_round_trip(contents)


def test_clients_of_different_forms():
    contents = {client: form(client) for client, form in enumerate(2 * list(FORMS.values()))}
    assert len(pack(contents)) == len(FORMS)
    check_round_trip(contents)


def test_order_of_clients():
    contents = {client: form(client) for client, form in zip((7, 2, 5, 3), (training_reply, error_reply, training_reply, evaluation_reply))}
    for order in permutations(contents):
        check_round_trip({client: contents[client] for client in order})


def test_no_clients():
    assert pack({}) == [] and unpack([]) == {}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_of_all_shapes_and_types(shape, dtype):
    contents = {client: RecordDict({"client_state": to_array_record({"a": array_of(SHAPES[shape], dtype, client)})}) for client in range(3)}
    check_round_trip(contents)


def test_types_are_not_mixed():
    """Stacking would convert them to one type."""
    kinds = {client: np.array([-0.0, 1.0]).astype(dtype) for client, dtype in enumerate(TYPES)}
    contents = {
        client: RecordDict({"client_state": to_array_record({"a": values, "n": values[0].reshape(())})}) for client, values in kinds.items()
    }
    check_round_trip(contents)
    assert np.signbit(unpack(pack(contents))[0]["client_state"]["a"].numpy()[0])


def test_arrays_with_other_memory_layouts():
    whole = array_of((4, 6), "float32")
    contents = {
        k: RecordDict({"client_state": to_array_record({"turned": whole.T, "columns": whole[:, k::2], "back": whole[::-1]})})
        for k in (0, 1)
    }
    check_round_trip(contents)


def test_flower_arrays():
    contents = {
        client: RecordDict({"update": ArrayRecord({"w": flwr.app.Array(array_of((3, 2), "float32", client))})}) for client in (0, 1)
    }
    contents[2] = RecordDict({"update": to_array_record({"w": array_of((3, 2), "float32", 2)})})
    assert len(pack(contents)) == 1
    check_round_trip(contents)


def test_records_with_equal_names_and_different_types():
    contents = {
        0: RecordDict({"x": MetricRecord({"n": 1})}),
        1: RecordDict({"x": ConfigRecord({"n": 1})}),
        2: RecordDict({"x": ArrayRecord()}),
    }
    assert len(pack(contents)) == 3
    check_round_trip(contents)


def test_unpacked_records_can_be_packed():
    """A client state is sent with every request and comes back with every reply."""
    contents = {client: training_reply(client) for client in range(3)}
    assert len(pack(pickle_round_trip(contents))) == 1
    check_round_trip(pickle_round_trip(contents))


def test_single_numbers_stay_arrays():
    record = pickle_round_trip({0: training_reply(0), 1: training_reply(1)})[1]["client_state"]
    assert isinstance(record["client:last_round"].numpy(), np.ndarray) and record["client:last_round"].numpy().shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pickled_model_is_equal(dtype):
    """With BatchNorm statistics, shared members, non-contiguous tensors, and lambda functions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FedGenCNN(Task("t", (1, 8, 8), 3), widths=(2, 3), pool=False, embedding_size=4).to(dtype)
    x, tilt = torch.linspace(-1, 1, 5 * 64, dtype=dtype).view(5, 1, 8, 8), torch.arange(6, dtype=dtype).view(2, 3).T[:, 1]
    model(x)
    model.eval().head.weight.requires_grad_(False)
    teacher = Ensemble([model, model, lambda x: (output := model(x))._replace(logits=output.logits + tilt)])
    decoded = pickle.loads(pickle_model(teacher))
    assert decoded.members[0] is decoded.members[1] is not model and same_tensors(
        dict(decoded.members[0].state_dict()), dict(model.state_dict())
    )
    assert [p.requires_grad for p in decoded.members[0].parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(decoded(x).logits, teacher(x).logits)


@pytest.mark.parametrize("tensor", [torch.ones(2, dtype=torch.bfloat16), torch.eye(3).to_sparse(), torch.tensor(3), torch.empty(0, 2)])
def test_pickled_tensors_of_other_kinds(tensor):
    decoded = pickle.loads(pickle_model(tensor))
    assert decoded.dtype == tensor.dtype and decoded.layout == tensor.layout and torch.equal(decoded.to_dense(), tensor.to_dense())
