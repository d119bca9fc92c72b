"""Ditto, FedRoD, FML and FedKD: two networks of a client, what travels, and what is tested."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fedkd.federation.client import batchnorm_statistic_names
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, load
from fedkd.two_networks import is_private, is_shared
from fedkd.types import Output
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.federation.trained_model import load_model
from strategies.fedkd import MentorAndMentee
from tests.processes import metrics
from tests.public_code import public_code
from tests.small_runs import SMALL, same_tensors, small_run, small_simulation

TWO_NETWORKS = ("ditto", "fedrod", "fml", "fedkd")
NEUTRAL = {
    "ditto": ("strategy=ditto", "strategy.weight=3"),
    "fedrod": ("strategy=fedrod", "strategy.gamma=0"),
    "fml": ("strategy=fml", "strategy.beta=1"),
    "fml joint": ("strategy=fml", "strategy.beta=1", "strategy.alpha=1", "strategy.peer=joint"),
    "fedkd": ("strategy=fedkd", "strategy.kl=0", "strategy.hidden=0", "strategy.start_energy=1", "strategy.end_energy=1"),
}
AWAY = {
    "fedrod gamma": (*NEUTRAL["fedrod"], "strategy.gamma=1"),
    "fml beta": (*NEUTRAL["fml"], "strategy.beta=0.5"),
    "fml peer": (*NEUTRAL["fml joint"], "strategy.alpha=0.5"),
    "fedkd kl": (*NEUTRAL["fedkd"], "strategy.kl=1"),
    "fedkd hidden": (*NEUTRAL["fedkd"], "strategy.hidden=1"),
}


def fedavg_of(name, *words):
    """FedAvg with the weights of clients of a strategy."""
    uniform = () if name.split()[0] in ("ditto", "fedrod") else ("strategy.aggregation=uniform",)
    return small_run("strategy=fedavg", *words, *uniform)


# ------------------------------------------------------------------------------------------------------------------ the rules
@pytest.mark.parametrize("name", NEUTRAL)
def test_the_shared_network_of_neutral_parameters_is_fedavg_bit_for_bit(name, protocol):
    uniform = () if name in ("ditto", "fedrod") else ("strategy.aggregation=uniform",)
    actual, fedavg = small_run(*NEUTRAL[name], protocol, *uniform), fedavg_of(name, protocol)
    assert same_tensors(actual.state["model"], fedavg.state["model"])
    for client, client_state in fedavg.client_states.items():
        for key, value in client_state.get("local", {}).items():
            assert torch.equal(actual.client_states[client]["local"][f"shared.{key}"], value)


@pytest.mark.parametrize("name", AWAY)
def test_other_parameters_change_the_shared_network(name):
    actual, fedavg = small_run(*AWAY[name], "optimizer.lr=0.1"), fedavg_of(name, "optimizer.lr=0.1")
    assert all(not torch.equal(actual.state["model"][key], value) for key, value in fedavg.state["model"].items() if value.ndim > 1)


@pytest.mark.parametrize("name", TWO_NETWORKS)
def test_the_private_network_stays_with_the_client(name):
    ran = small_run(f"strategy={name}", "clients_per_round=6")
    first, second = (ran.client_states[k]["local"] for k in range(2))
    private = [key for key, value in first.items() if is_private(key) and value.ndim > 1]
    assert private and all(not torch.equal(first[key], second[key]) for key in private)
    statistics = batchnorm_statistic_names(ran.simulation.model)
    assert {key for key in first if is_shared(key)} == {f"shared.{key}" for key in statistics}
    sent = ran.simulation.strategy.decompress(ran.state["model"])
    assert sent.keys() == ran.simulation.initial.keys() - statistics


@pytest.mark.parametrize("name", TWO_NETWORKS)
def test_a_client_that_has_not_trained_has_its_initial_networks(name):
    simulation, _ = small_simulation(f"strategy={name}")
    strategy, server = simulation.strategy, simulation.federation().server
    client = simulation.client(0, 1)
    weights = strategy.test_weights(client, strategy.init_server(server), strategy._new_client_state(client))
    exact = {key for key, value in client.initial.items() if name != "fedkd" or is_private(key) or value.ndim < 2}
    assert weights.keys() == client.initial.keys() and all(torch.equal(weights[key], client.initial[key]) for key in exact)
    same = all(torch.equal(client.initial[f"private.{key}"], value) for key, value in simulation.initial.items() if name == "ditto")
    assert same and (name != "fml" or not torch.equal(client.initial["private.head.weight"], client.initial["shared.head.weight"]))


@pytest.mark.parametrize("name", TWO_NETWORKS)
def test_both_networks_are_tested(tmp_path, name):
    """The private one on the local test sets, the shared one there and globally. A loaded model of a client is what its test measures."""
    words = [*SMALL, f"strategy={name}", "evaluation.every=1", "progress=false", f"output={tmp_path}", "clients_per_round=6"]
    folder = run_federation(compose([*words, "local_steps=20", "optimizer.lr=0.1", "rounds=2"]))
    row = metrics(folder).iloc[-1]
    columns = ["local_test_accuracy", "local_test_accuracy_shared", "global_test_accuracy"]
    assert row[columns].astype(float).between(0.05, 1.0).all() and row[columns[0]] != row[columns[1]]
    tested = small_simulation(*words, "local_steps=20", "optimizer.lr=0.1", "rounds=2")[0].client(0, 2, testing=True)
    x = tested.data.images(torch.arange(len(tested.data)))
    model, simulation = load_model(folder, client=0), small_simulation(*words)[0]
    functional = FunctionalModel(simulation.networks[0].model.eval())
    load(simulation.networks[0].model, model.state_dict())
    assert torch.equal(model(x).logits, simulation.strategy.predict_client(functional, x, {}, {})[""])


@pytest.mark.parametrize("name", ["fml", "fedkd"])
def test_private_networks_may_be_of_any_kind(name):
    ran = small_run(f"strategy={name}", "model=heterogeneous", "+model@strategy.shared_model=mlp", "clients_per_round=6")
    kinds = {type(ran.simulation.networks[k].model.private).__name__ for k in range(6)}
    assert kinds == {"FedGenCNN", "MLP"} and type(ran.simulation.model).__name__ == "MLP"
    assert ran.simulation.strategy.decompress(ran.state["model"]).keys() == ran.simulation.initial.keys()


@pytest.mark.parametrize("name", ["ditto", "fedrod"])
def test_copies_of_one_network_cannot_differ(name):
    with pytest.raises(ValueError, match="model must be one network for all clients with strategy"):
        small_simulation(f"strategy={name}", "model=heterogeneous")


# --------------------------------------------------------------------------------------------------------------- public code
class Base(nn.Module):
    """A linear network with a linear head."""

    def __init__(self):
        super().__init__()
        self.base, self.head, self.task, self.embedding_size = nn.Linear(8, 6), nn.Linear(6, 4), None, 6

    def forward(self, x):
        z = self.base(x)
        return Output(self.head(z), z)


def mutual_step(name, **fields):
    """The terms of one step of FML or FedKD on the tensors of the public code, and the tensors after it."""
    arrays = public_code("mutual")
    network = MentorAndMentee(Base(), Base()).double()
    start = {key: value for key, value in arrays.items() if key not in ("x", "y")}
    start = {key.replace("/", "."): value for key, value in start.items()} | {"projection.weight": public_code("fedkd")["projection"]}
    load(network, start)
    words = [f"strategy.{key}={value}" for key, value in fields.items()]
    strategy = small_simulation(f"strategy={name}", *words)[0].strategy
    loss, terms = strategy.loss(FunctionalModel(network), Batch(arrays["x"], arrays["y"], {}), {}, {})
    loss.backward()
    moved = {key: value.detach() - 0.1 * value.grad for key, value in network.named_parameters() if value.grad is not None}
    return torch.stack(list(terms.values())), moved


@pytest.mark.parametrize(
    ("name", "prefix", "fields"),
    [
        ("fml", "fml/", {"peer": "joint", "mean_over_classes": "true"}),
        ("fml", "fml/authors_", {}),
        ("fedkd", "fedkd/", {}),
    ],
)
def test_mutual_learning_of_public_code(name, prefix, fields):
    group, _, start = prefix.partition("/")
    expected, (terms, moved) = public_code(group), mutual_step(name, **fields)
    assert_close(terms.detach(), expected[f"{start}losses"], rtol=0, atol=1e-12)
    for network in ("private", "shared"):
        for key in ("base.weight", "base.bias", "head.weight", "head.bias"):
            assert_close(moved[f"{network}.{key}"], expected[f"{start}{network}_after/{key}"], rtol=0, atol=1e-12)
    if name == "fedkd":
        assert_close(moved["projection.weight"], expected["projection_after"], rtol=0, atol=1e-12)


def test_fedrod_of_public_code():
    arrays, expected = public_code("calibrate"), public_code("fedrod")
    logits = arrays["logits"].clone().requires_grad_()

    class Both(nn.Module):
        """A shared network whose logits are given, and a private head of zeros."""

        def __init__(self):
            super().__init__()
            self.shared, self.private = nn.Module(), nn.Linear(2, 6).double()
            self.shared.forward = lambda x: Output(logits, torch.zeros(9, 2, dtype=torch.float64))
            nn.init.zeros_(self.private.bias)

    strategy, prior = small_simulation("strategy=fedrod")[0].strategy, arrays["counts"].double().log().expand(9, -1)
    loss, _ = strategy.loss(FunctionalModel(Both()), Batch(torch.zeros(9), arrays["labels"], {"prior": prior}), {}, {})
    personal = nn.functional.cross_entropy(arrays["logits"], arrays["labels"])
    assert_close(loss.detach() - personal, expected["balanced_softmax"], rtol=0, atol=1e-12)
    assert_close(torch.autograd.grad(loss, [logits])[0], expected["balanced_softmax_grad"], rtol=0, atol=1e-12)


def test_ditto_of_public_code():
    """A step from v along the gradient of the loss and the distance to w."""
    arrays = public_code("ditto")

    class Constant(nn.Module):
        """A private network whose cross-entropy has a given gradient: it is linear in the parameter."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(arrays["personal"].clone())

    strategy, network = small_simulation("strategy=ditto")[0].strategy, nn.Module()
    network.private = Constant()
    network.private.forward = lambda x: Output(torch.stack([network.private.weight.detach() * 0] * 2).T, None)
    loss, _ = strategy.personal_loss(
        FunctionalModel(network), Batch(torch.zeros(6), torch.zeros(6, dtype=torch.int64), {}), {"model": {"weight": arrays["global"]}}, {}
    )
    (gradient,) = torch.autograd.grad(loss, [network.private.weight])
    assert_close(arrays["personal"] - 0.05 * (arrays["grad"] + gradient), arrays["after_lr0.05_lambda1"], rtol=0, atol=1e-12)


def test_only_low_ranks_of_fedkd_travel():
    """The bytes of a round are those of the factors, and the rank rises with the share of energy."""
    ran = small_run("strategy=fedkd", "strategy.start_energy=0.5", "strategy.end_energy=0.9", "strategy.energy_rounds=3")
    strategy, whole = ran.simulation.strategy, ran.simulation.strategy.decompress(ran.state["model"])
    number = sum(value.numel() for value in ran.state["model"].values())
    assert number < sum(value.numel() for value in whole.values())
    assert [strategy.energy(r) for r in (0, 3, 9)] == pytest.approx([0.5, 0.9, 0.9])
    assert float(ran.state["energy"]["share"]) == pytest.approx(0.9)
