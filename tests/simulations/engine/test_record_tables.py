"""Records of many clients come out of columns as they went in."""

import pickle
from itertools import permutations

import flwr.app
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedkd.federation.serialization import record_of
from fedkd.models.cnn import FedGenCNN
from fedkd.models.ensemble import Ensemble
from fedkd.types import Task
from simulations.engine.client_work import CLIENT_RAISED
from simulations.engine.record_tables import pack, unpack
from simulations.engine.worker import packed
from tests.conftest import same

TYPES = ("float32", "float64", "int64", "uint8", "bool")
SHAPES = {"vector": (3,), "kernels": (2, 1, 3, 3), "no dimension": (), "nothing": (0,), "rows of nothing": (2, 0)}


def numbers(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Numbers of any type, the sign of zero among them."""
    drawn = np.asarray(np.random.default_rng(seed).integers(0, 100, shape)).astype(dtype)
    return -drawn if dtype.startswith("float") else drawn


def trained(client: int, classes: int = 4, width: int = 3) -> RecordDict:
    """What a client answers to training."""
    update = record_of({"model:weight": numbers((width, 2), "float32", client), "labels:counts": numbers((classes,), "int64", client)})
    own = record_of({"client:last_round": np.array(client), "statistics:mean": numbers((width,), "float64", client)})
    metrics = MetricRecord({"num-examples": 10 + client, "loss": client / 3})
    return RecordDict({"update": update, "metrics": metrics, "about": ConfigRecord({"architecture": f"net-{client}"}), "own": own})


def failed(client: int) -> RecordDict:
    """What a client answers that raised."""
    return RecordDict({"error": ConfigRecord({"code": CLIENT_RAISED, "reason": f"Traceback ...\nKeyError: {client}"})})


def evaluated(client: int) -> RecordDict:
    """What a client answers to evaluation, with a list of its own length."""
    return RecordDict({"metrics": MetricRecord({"num-examples": client, "correct": [client] * client, "losses": [0.5, float(client)]})})


FORMS = {
    "trained": trained,
    "of another shape": lambda client: trained(client, classes=5),
    "of another width": lambda client: trained(client, width=7),
    "failed": failed,
    "evaluated": evaluated,
    "nothing": lambda client: RecordDict(),
    "empty records": lambda client: RecordDict({"update": ArrayRecord(), "metrics": MetricRecord(), "about": ConfigRecord()}),
    "words": lambda client: RecordDict(
        {"c": ConfigRecord({"a": "b", "n": client, "f": 0.5, "yes": True, "raw": b"\0\xff", "s": ["x"] * client})}
    ),
}


def through(contents: dict[int, RecordDict]) -> dict[int, RecordDict]:
    """The way between two processes."""
    return unpack(pickle.loads(pickle.dumps(pack(contents), protocol=5)))


def alike(left: RecordDict, right: RecordDict) -> bool:
    """The same records of the same types in the same order, arrays bit for bit."""
    if list(left) != list(right) or [type(record) for record in left.values()] != [type(record) for record in right.values()]:
        return False
    return all(equal(left[name], right[name]) for name in left)


def equal(left, right) -> bool:
    """Two records of one type."""
    if not isinstance(left, ArrayRecord):
        return dict(left) == dict(right) and all(type(left[key]) is type(right[key]) for key in left)
    if list(left) != list(right):
        return False
    pairs = [(left[name].numpy(), right[name].numpy()) for name in left]
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


def check(contents: dict[int, RecordDict]) -> None:
    """All come back, through pickle and without it."""
    for back in (unpack(pack(contents)), through(contents)):
        assert back.keys() == contents.keys() and all(alike(back[client], contents[client]) for client in contents)


@pytest.mark.parametrize("form", FORMS)
def test_clients_of_one_form_share_a_table(form):
    contents = {client: FORMS[form](client) for client in (4, 0, 11)}
    (table,) = pack(contents)
    assert table[0] == [4, 0, 11]
    check(contents)


def test_clients_of_unlike_forms_come_back_each_in_its_own():
    contents = {client: form(client) for client, form in enumerate(2 * list(FORMS.values()))}
    assert len(pack(contents)) == len(FORMS)
    check(contents)


def test_in_whatever_order():
    contents = {client: form(client) for client, form in zip((7, 2, 5, 3), (trained, failed, trained, evaluated))}
    for order in permutations(contents):
        check({client: contents[client] for client in order})


def test_nobody_is_no_table():
    assert pack({}) == [] and unpack([]) == {}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_of_any_shape_and_type(shape, dtype):
    contents = {client: RecordDict({"own": record_of({"a": numbers(SHAPES[shape], dtype, client)})}) for client in range(3)}
    check(contents)


def test_types_are_not_mixed_and_the_sign_of_zero_stays():
    """Stacked together they would become one type."""
    kinds = {client: np.array([-0.0, 1.0]).astype(dtype) for client, dtype in enumerate(TYPES)}
    contents = {client: RecordDict({"own": record_of({"a": values, "n": values[0].reshape(())})}) for client, values in kinds.items()}
    check(contents)
    assert np.signbit(unpack(pack(contents))[0]["own"]["a"].numpy()[0])


def test_arrays_that_lie_otherwise_than_row_by_row():
    whole = numbers((4, 6), "float32")
    contents = {k: RecordDict({"own": record_of({"turned": whole.T, "columns": whole[:, k::2], "back": whole[::-1]})}) for k in (0, 1)}
    check(contents)


def test_flower_s_own_arrays_go_along():
    contents = {client: RecordDict({"update": ArrayRecord({"w": flwr.app.Array(numbers((3, 2), "float32", client))})}) for client in (0, 1)}
    contents[2] = RecordDict({"update": record_of({"w": numbers((3, 2), "float32", 2)})})
    assert len(pack(contents)) == 1
    check(contents)


def test_records_of_one_name_and_unlike_type_do_not_meet():
    contents = {
        0: RecordDict({"x": MetricRecord({"n": 1})}),
        1: RecordDict({"x": ConfigRecord({"n": 1})}),
        2: RecordDict({"x": ArrayRecord()}),
    }
    assert len(pack(contents)) == 3
    check(contents)


def test_what_was_unpacked_can_be_packed_again():
    """A client's memory goes out with every request and comes back with every answer."""
    contents = {client: trained(client) for client in range(3)}
    assert len(pack(through(contents))) == 1
    check(through(contents))


def test_what_was_unpacked_is_an_array_even_where_it_is_one_number():
    record = through({0: trained(0), 1: trained(1)})[1]["own"]
    assert isinstance(record["client:last_round"].numpy(), np.ndarray) and record["client:last_round"].numpy().shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_packed_model_is_the_same_model(dtype):
    """With its statistics and counts, what its members share, tensors that do not lie in order, and functions that have no name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FedGenCNN(Task("t", (1, 8, 8), 3), widths=(2, 3), pool=False, embedding_size=4).to(dtype)
    x, tilt = torch.linspace(-1, 1, 5 * 64, dtype=dtype).view(5, 1, 8, 8), torch.arange(6, dtype=dtype).view(2, 3).T[:, 1]
    model(x)
    model.eval().head.weight.requires_grad_(False)
    teacher = Ensemble([model, model, lambda x: (given := model(x))._replace(logits=given.logits + tilt)])
    back = pickle.loads(packed(teacher))
    assert back.members[0] is back.members[1] is not model and same(dict(back.members[0].state_dict()), dict(model.state_dict()))
    assert [p.requires_grad for p in back.members[0].parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(back(x).logits, teacher(x).logits)


@pytest.mark.parametrize("tensor", [torch.ones(2, dtype=torch.bfloat16), torch.eye(3).to_sparse(), torch.tensor(3), torch.empty(0, 2)])
def test_packed_tensors_of_other_kinds(tensor):
    back = pickle.loads(packed(tensor))
    assert back.dtype == tensor.dtype and back.layout == tensor.layout and torch.equal(back.to_dense(), tensor.to_dense())
