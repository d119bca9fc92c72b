"""FedDistill: its loss, its tables of logits over several rounds, and what is shared."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedkd.federation import serialization
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from simulations.engine.local_engine import LocalGrid
from strategies.feddistill import FedDistill
from tests import oracles
from tests.small_runs import same_tensors, small_run, small_simulation
from tests.strategies.strategy_tools import SWITCHES, to_numpy


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
def test_feddistill_loss(gamma):
    simulation, _ = small_simulation("model=mlp", "model.widths=[3]", "precision=float64")
    model, random = deepcopy(simulation.model), np.random.default_rng(0)
    x, y, table = random.random((6, 1, 2, 32)), random.integers(0, 10, 6), random.standard_normal((10, 10))
    strategy = FedDistill(**SWITCHES, share_model=True, gamma=gamma, accumulate=True, initial_count=1, leave_one_out=False)
    broadcast = {"logits": {"mean": torch.from_numpy(table).requires_grad_()}}
    batch = Batch(torch.from_numpy(x), torch.from_numpy(y), {"gamma": torch.tensor(gamma)})
    value, metrics = strategy.loss(FunctionalModel(model), batch, broadcast, {})
    at, names = to_numpy(simulation.initial), [name for name, _ in model.named_parameters()]
    assert value.item() == pytest.approx(oracles.feddistill(at, table, x, y, gamma), rel=1e-12)
    gradients = dict(zip(names, torch.autograd.grad(value, list(model.parameters()))))
    heads = {key: at[key] for key in names if key.startswith("head.")}
    slopes = oracles.gradient(lambda head: oracles.feddistill({**at, **head}, table, x, y, gamma), heads)
    for name, slope in slopes.items():
        np.testing.assert_allclose(gradients[name].numpy(), slope, atol=1e-7)
    logits = oracles.mlp(at, x)
    np.testing.assert_allclose(metrics["logits"].numpy(), [logits[y == label].sum(0) for label in range(10)], atol=1e-12)
    assert metrics["labels"].tolist() == np.bincount(y, minlength=10).tolist()
    assert not metrics["logits"].requires_grad


@pytest.mark.parametrize(("accumulate", "initial_count"), [(True, 1), (False, 1), (True, 0), (False, 0)])
def test_feddistill_tables_over_two_rounds(accumulate, initial_count, monkeypatch):
    simulation, text = small_simulation(
        "strategy=feddistill", "model=mlp", "precision=float64", "clients_per_round=6", f"strategy.accumulate={str(accumulate).lower()}",
        f"strategy.initial_count={initial_count}", "partition.alpha=0.1",
    )  # fmt: skip
    strategy, original, seen = simulation.strategy, simulation.strategy.loss, []

    def spy(model, batch, broadcast, client_state):
        seen.append((model(batch.x).logits.detach().numpy(), batch.y.numpy(), broadcast["logits"]["mean"].clone(), float(batch.gamma)))
        return original(model, batch, broadcast, client_state)

    monkeypatch.setattr(strategy, "loss", spy)
    result = strategy.start(LocalGrid(6, text), num_rounds=3)
    steps = simulation.config.local_steps
    assert len(seen) == 1 + 3 * 6 * steps, "one more step finds the form of updates"
    del seen[6 * steps]  # when the first updates arrive
    by_client = [[seen[(r * 6 + k) * steps + s] for r in range(3) for s in range(steps)] for k in range(6)]
    for number in (1, 2):
        begin = 0 if accumulate else (number - 1) * steps
        tables = []
        for mine in by_client:
            logits, labels = (np.concatenate([step[i] for step in mine[begin : number * steps]]) for i in (0, 1))
            tables.append(oracles.logit_table(logits, labels, 10, initial_count))
        np.testing.assert_allclose(by_client[0][number * steps][2].numpy(), np.mean(tables, axis=0), rtol=1e-12)
    assert [by_client[0][r * steps][3] for r in range(3)] == [0.0, 1.0, 1.0]
    assert any((table == 0).all(1).any() for table in tables)  # at least one client has no example of a class
    assert len(result.train_metrics_clientapp) == 3


def test_feddistill_without_shared_models():
    once, twice = (
        small_run("strategy=feddistill_logits", "rounds=1"),
        small_run("strategy=feddistill_logits", "rounds=2", "clients_per_round=6"),
    )
    simulation, first = once.simulation, once.simulation.strategy.sample_clients(range(6), 1)
    assert set(once.state) == {"logits"} and simulation.strategy.global_model(simulation.federation().server, once.state) is None
    assert sorted(once.client_states) == first and simulation.strategy.broadcast_parts == ("logits",)
    assert not same_tensors(once.client_states[first[0]]["model"], once.client_states[first[1]]["model"])
    for client, client_state in once.client_states.items():
        begun = simulation.strategy.initial_weights(simulation.client(client, 2), once.state, client_state)
        assert same_tensors(begun, {**client_state["model"], **client_state["local"]})
        assert client_state["client"]["last_round"] == 1
    stranger = next(client for client in range(6) if client not in first)
    participant = simulation.client(stranger, 1)
    assert same_tensors(
        simulation.strategy.initial_weights(participant, once.state, simulation.strategy._new_client_state(participant)), simulation.initial
    )
    assert all(client_state["local"]["stages.0.1.num_batches_tracked"] == 8 for client_state in twice.client_states.values())


def test_feddistill_updates():
    for name, parts in (("feddistill", {"model", "logits"}), ("feddistill_logits", {"logits"})):
        simulation, _ = small_simulation(f"strategy={name}")
        sent, _ = simulation.strategy.train(
            simulation.client(0, 1), simulation.strategy.init_server(simulation.federation().server), None, 1
        )
        assert set(sent.state) == parts


def test_feddistill_leave_one_out():
    """Each of two clients learns from the other's table, and an absent client from the mean of both. A single client learns from none."""
    simulation, text = small_simulation(
        "strategy=feddistill_logits", "strategy.leave_one_out=true", "num_clients=3", "clients_per_round=2", "precision=float64",
        "model=mlp",
    )  # fmt: skip
    strategy, grid = simulation.strategy, LocalGrid(3, text)
    state = serialization.from_record(strategy.start(grid, num_rounds=1).arrays)
    one, two = strategy.sample_clients(range(3), 1)
    client_states = {client: serialization.from_record(record) for client, record in grid.client_states.items()}
    sent = {client: client_states[client]["logits"]["sent"] for client in (one, two)}
    assert state["logits"]["clients"] == 2 and not torch.equal(sent[one], sent[two])
    out = next(iter({0, 1, 2} - {one, two}))
    for client, table in {one: sent[two], two: sent[one], out: (sent[one] + sent[two]) / 2}.items():
        participant = simulation.client(client, 2)
        client_state = client_states.get(client) or strategy._new_client_state(participant)
        batch = next(iter(strategy._prepare(participant, state, client_state, 2)[1][0].batches))
        assert_close(strategy.table(batch, state, client_state), table, rtol=1e-12, atol=1e-12)
        assert batch.gamma == 1
    alone = {"logits": {"mean": sent[one], "clients": torch.tensor(1.0, dtype=torch.float64)}}
    assert next(iter(strategy._prepare(simulation.client(one, 2), alone, client_states[one], 2)[1][0].batches)).gamma == 0
