"""Frozen parameters keep their bits, and tied parameters stay equal, in every way to train."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn

from fedkd.distillation.student_training import Progress
from fedkd.training.batch import Batches
from fedkd.training.functional_model import call_with, snapshot, tied_names, trained_names
from fedkd.training.loop import Execution, fit
from tests.fedkd.distillation.method_tools import small_setup
from tests.small_runs import small_run, small_simulation, strategy_overrides

HEAVY = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)


def network(name: str) -> tuple[str, ...]:
    """Overrides that choose a network of :mod:`tests.own_networks`."""
    return ("~model", f"+model._target_=tests.own_networks.{name}", "+model._partial_=true")


@pytest.mark.parametrize("optimizer", [HEAVY, partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1)])
@pytest.mark.parametrize("together", [False, True])
def test_frozen_parameters_keep_their_bits(together, optimizer):
    simulation, _ = small_simulation("strategy=fedprox", "strategy.weight_decay=0.1", *network("frozen"))
    clients = [replace(simulation.client(k, 1), optimizer=optimizer, lr=0.1) for k in range(3)]
    broadcast = {"model": simulation.initial}
    if together:
        trained = simulation.strategy.train_clients(clients, broadcast, [None] * 3, 1)
    else:
        trained = [simulation.strategy.train(client, broadcast, None, 1) for client in clients]
    for update, _ in trained:
        for key, value in update.state["model"].items():
            assert torch.equal(value, simulation.initial[key]) == key.startswith("stages."), key


@pytest.mark.parametrize("name", ["fedavg", "fedgkd", "scaffold", "feddf", "dense", "fedensemble", "fedproto"])
def test_frozen_parameters_keep_their_bits_in_all_parts(name):
    """Three rounds with three clients each, so that thirds are averaged; ``fedgkd`` averages rounds too."""
    buffer = ["strategy.buffer=3"] if name == "fedgkd" else []
    ran = small_run(f"strategy={name}", *strategy_overrides(name), *buffer, "clients_per_vmap=3", *network("frozen"))
    initial = ran.simulation.initial
    frozen = [key for key in initial if key not in trained_names(ran.simulation.model)]
    assert frozen and all(key.startswith("stages.") for key in frozen)
    parts = [*ran.state.values(), *(part for state in ran.client_states.values() for part in state.values())]
    held = [(key, part[key]) for part in parts for key in frozen if key in part and part[key].shape == initial[key].shape]
    for key, value in held:
        control = name == "scaffold" and not value.any()
        assert control or torch.equal(value, initial[key]), key
    moved = [part["head.weight"] for part in parts if "head.weight" in part]
    assert any(not torch.equal(value, initial["head.weight"]) for value in moved), "the head is trained"


def test_frozen_parameters_keep_their_bits_in_flowers_strategies():
    """Flower averages in NumPy, and its rounding does not reach the model."""
    simulation, _ = small_simulation(*network("frozen"))
    rounded = {key: value * 1.0000001 for key, value in simulation.initial.items()}
    actual = simulation.to_model_tensors(ArrayRecord(rounded))
    for key, value in simulation.initial.items():
        assert torch.equal(actual[key], value if key.startswith("stages.") else rounded[key]), key


def test_frozen_parameters_of_a_recorded_step():
    """A graph that replays a step trains the same parameters, and none that were frozen after it was recorded."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    loss = lambda model, batch, broadcast, client_state: (model.parameters()["1.weight"].square().sum(), {})
    start, steps = snapshot(model), Batches(torch.zeros(120, 1, dtype=torch.int64))
    for _ in range(2):
        assert not torch.equal(fit(model, start, steps, loss, HEAVY).tensors["1.weight"], start["1.weight"])
    model[1].weight.requires_grad_(False)
    decayed = fit(model, start, steps, lambda model, *_: (model.parameters()["0.weight"].sum(), {}), HEAVY).tensors
    assert torch.equal(decayed["1.weight"], start["1.weight"]) and not torch.equal(decayed["0.weight"], start["0.weight"])


@pytest.mark.parametrize("size", [1, 3])
def test_tied_parameters_stay_equal(size):
    """They are trained once, with the sum of both gradients."""
    ran = small_run("strategy=fedgkd", f"clients_per_vmap={size}", *network("tied"))
    first, second = "stages.0.3.weight", "stages.0.5.weight"
    assert tied_names(ran.simulation.model) == {second: first}
    assert torch.equal(ran.state["model"][first], ran.state["model"][second])
    assert not torch.equal(ran.state["model"][first], ran.simulation.initial[first])


def test_tied_parameters_have_the_gradient_of_both_uses():
    layer = nn.Linear(1, 1, bias=False)
    model, batches = nn.Sequential(layer, layer), Batches(torch.zeros(1, 1, dtype=torch.int64))
    start = {key: torch.tensor([[3.0]]) for key in model.state_dict()}

    def loss(model, batch, broadcast, client_state):  # w w x with x = 1: the gradient is 2 w
        return model(torch.ones(1, 1)).sum(), {}

    fitted = fit(model, start, batches, loss, partial(torch.optim.SGD, lr=0.5), execution=Execution())
    assert {key: value.item() for key, value in fitted.tensors.items()} == {"0.weight": 0.0, "1.weight": 0.0}
    assert call_with(model, start, torch.ones(1, 1)).item() == 9.0


@pytest.mark.parametrize("size", [1, 3])
def test_integer_buffers_count(size):
    ran = small_run("strategy=fedavg", f"clients_per_vmap={size}", "rounds=1", *network("counting"))
    assert ran.state["model"]["stages.0.3.seen"] == 4 * 16
    assert ran.state["model"]["stages.0.3.seen"].dtype == torch.int64


def test_frozen_student_of_a_distillation():
    setup = small_setup("distiller=kd")
    setup.learner.student.stages.requires_grad_(False)
    training = setup.training(snapshot(setup.teacher))
    start = {key: value.clone() for key, value in setup.initial_tensors.items()}
    trained = training.epoch(Progress(0, start))[0].tensors
    for name, parameter in setup.learner.named_parameters():
        assert torch.equal(trained[name], start[name]) != parameter.requires_grad, name
