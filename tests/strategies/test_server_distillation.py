"""Laws of all strategies with server-side distillation."""

from dataclasses import replace

import pytest
import torch

from tests.small_runs import same_tensors
from tests.strategies.server_tools import clone, trained_clients

SERVER_SIDE = ("feddf", "feddfusion", "dense", "fedftg")


@pytest.mark.parametrize("name", SERVER_SIDE)
def test_server_is_pure_and_uses_its_seed(name):
    simulation, server, state, updates = trained_clients(name)
    before, random = clone({"state": state, **{str(u.client): u.state for u in updates}}), torch.get_rng_state()
    first, _ = simulation.strategy.aggregate(server, state, updates, 1)
    assert same_tensors({"state": state, **{str(u.client): u.state for u in updates}}, before)
    assert same_tensors(simulation.strategy.aggregate(server, state, updates, 1)[0], first) and torch.equal(torch.get_rng_state(), random)
    other = replace(server, seed=server.seed / "other")
    assert not same_tensors(simulation.strategy.aggregate(other, state, updates, 1)[0]["model"], first["model"])


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
@pytest.mark.parametrize("name", ["feddf", "dense", "fedftg"])
def test_server_with_other_networks_and_one_client(name, model):
    simulation, server, state, updates = trained_clients(name, f"model={model}", "local_steps=1")
    after, metrics = simulation.strategy.aggregate(server, state, updates[:1], 1)
    assert all(torch.isfinite(value).all() for value in after["model"].values())
    assert same_tensors(after["average"], updates[0].state["model"]) and len(metrics) >= 2
