"""FedEnsemble: the members of its ensemble."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch.testing import assert_close

from fedkd.federation import serialization
from simulations.engine.local_engine import LocalGrid
from tests.small_runs import same_tensors, small_run, small_simulation


def test_fedensemble_sums_logits_of_all_clients(protocol, monkeypatch):
    """The clients of the round have their trained models, all others the last broadcast."""
    simulation, text = small_simulation("strategy=fedensemble", protocol)
    grid, kept, original = LocalGrid(6, text), [], simulation.strategy.aggregate
    monkeypatch.setattr(simulation.strategy, "aggregate", lambda server, state, updates, number: (
        kept.append((state, updates)), original(server, state, updates, number))[1])  # fmt: skip
    result = simulation.strategy.start(grid, num_rounds=3)
    before, updates = kept[-1]
    client_states = {client: serialization.from_record(record) for client, record in grid.client_states.items()}
    x, total = simulation.global_test.images(torch.arange(50)), 0
    trained = {u.client: u.state["model"] for u in updates}
    assert 0 < len(trained) < 6 and any(client in client_states for client in range(6) if client not in trained)
    for client in range(6):
        model = deepcopy(simulation.model)
        statistics_ = client_states.get(client, {}).get("local", {})
        model.load_state_dict({**simulation.initial, **trained.get(client, before["model"]), **statistics_})
        total = total + model.eval()(x).logits.detach()
    server = replace(simulation.federation().server, client_states=client_states)
    ensemble = simulation.strategy.client_ensemble(server, serialization.from_record(result.arrays))
    with torch.no_grad():
        assert_close(ensemble(x).logits, total)
    assert not same_tensors(before["model"], serialization.from_record(result.arrays)["model"])


def test_fedensemble_state_has_members_of_last_round():
    ran = small_run("strategy=fedensemble")
    members = {int(part.removeprefix("member-")) for part in ran.state if part.startswith("member-")}
    assert sorted(members) == ran.simulation.strategy.sample_clients(range(6), 3)
    assert ran.simulation.strategy.broadcast_parts == ("model",)
