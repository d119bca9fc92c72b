"""SCAFFOLD on quadratics with a known optimum, and its control variates."""

from functools import partial

import numpy as np
import pytest
import torch

from fedkd.errors import ConfigError
from fedkd.federation import serialization
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Update
from simulations.engine.local_engine import LocalGrid
from strategies.fedavg import FedAvg
from strategies.scaffold import Scaffold
from tests import oracles
from tests.small_runs import small_simulation
from tests.strategies.strategy_tools import gradients


class QuadraticClients(FedAvg):
    """Client i minimizes ``a_i / 2 (w - b_i)^2``, where w is the first bias of the head."""

    def prepare_batches(self, client, batches, broadcast, client_state, server_round):
        return {name: torch.full((len(batches),), values[client.id], dtype=client.dtype) for name, values in COEFFICIENTS.items()}

    def loss(self, model, batch, broadcast, client_state):
        return batch.a / 2 * (model.parameters()["head.bias"][0] - batch.b) ** 2, {}


class ScaffoldQuadraticClients(Scaffold, QuadraticClients):
    """The same clients with SCAFFOLD."""


COEFFICIENTS = {"a": (1.0, 4.0), "b": (0.0, 1.0)}


@pytest.mark.parametrize(("correction", "momentum", "end"), [(0.0, 0.0, 0.6041260), (1.0, 0.0, 0.8), (1.0, 0.5, 0.8)])
def test_scaffold_reaches_the_optimum_on_quadratics(correction, momentum, end):
    """Two quadratics, ten steps with learning rate 0.1. The optimum of their mean is 0.8."""
    simulation, text = small_simulation(
        "strategy=scaffold", f"strategy._target_={__name__}.ScaffoldQuadraticClients", f"strategy.correction={correction}", "model=mlp",
        "protocol@strategy=paper", "precision=float64", "num_clients=2", "clients_per_round=2", "local_steps=10", "batch_size=8",
        "optimizer.lr=0.1", f"optimizer.momentum={momentum}",
    )  # fmt: skip
    state = simulation.strategy.init_server(simulation.federation().server)
    state = {**state, "model": {**state["model"], "head.bias": torch.zeros(10, dtype=torch.float64)}}
    grid = LocalGrid(2, text)
    for rounds in (3, 60):
        grid.client_states.clear()
        result = simulation.strategy.start(grid, serialization.to_record(state), num_rounds=rounds)
        final, client_states = serialization.from_record(result.arrays), [serialization.from_record(grid.client_states[k]) for k in (0, 1)]
        x, client_state, c = oracles.scaffold(*map(np.array, COEFFICIENTS.values()), rounds, 10, 0.1, momentum, correct=correction > 0)
        assert final["model"]["head.bias"][0].item() == pytest.approx(x, abs=1e-12)
        assert [client_state["control"]["head.bias"][0].item() for client_state in client_states] == pytest.approx(
            client_state.tolist(), abs=1e-12
        )
        assert final["control"]["head.bias"][0].item() == pytest.approx(c, abs=1e-12) == pytest.approx(np.mean(client_state), abs=1e-12)
    assert x == pytest.approx(end, abs=1e-6)


def test_scaffold_aggregation():
    simulation, _ = small_simulation("strategy=scaffold", "strategy.server_lr=0.5", "protocol@strategy=paper")
    state = {"model": {"w": torch.tensor([1.0])}, "control": {"w": torch.tensor([10.0])}}
    ends, changes = (3.0, 5.0), (6.0, 0.0)
    sent = [{"model": {"w": torch.tensor([e])}, "control": {"w": torch.tensor([c])}} for e, c in zip(ends, changes)]
    after, _ = simulation.strategy.aggregate(
        simulation.federation().server, state, [Update(k, 5, "net", one) for k, one in enumerate(sent)], 1
    )
    assert after["control"]["w"].item() == pytest.approx(10 + 2 / 6 * 3) and after["model"]["w"].item() == pytest.approx(1 + 0.5 * 3)


def test_scaffold_loss_is_cross_entropy_with_corrected_gradient():
    simulation, _ = small_simulation("strategy=scaffold")
    state = simulation.strategy.init_server(simulation.federation().server)
    assert set(state["control"]) == {name for name, _ in simulation.model.named_parameters()}
    batch, client_state = next(iter(simulation.client(0, 1).batches())), simulation.strategy._new_client_state(simulation.client(0, 1))
    moved = {**state, "control": {name: value + 1 for name, value in state["control"].items()}}
    values = [
        simulation.strategy.loss(FunctionalModel(simulation.model.eval()), batch, broadcast, client_state)[0]
        for broadcast in (state, moved)
    ]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-12)
    plain, pushed = (gradients(value, simulation.model) for value in values)
    assert all(torch.allclose(pushed[name], plain[name] + 1, atol=1e-5) for name in plain)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["optimizer=adam"], "got 'Adam'"),
        (["optimizer=momentum", "+optimizer.nesterov=true"], "got 'nesterov=true'"),
        (["optimizer=momentum", "+optimizer.dampening=0.5"], "got 'dampening=0.5'"),
        (["+optimizer.maximize=true"], "got 'maximize=true'"),
    ],
)
def test_optimizers_without_mean_gradient_are_refused(overrides, reason):
    with pytest.raises(ConfigError, match=f"^optimizer must be SGD .*{reason}$"):
        small_simulation("strategy=scaffold", *overrides)


def test_sgd_with_momentum_and_weight_decay_is_accepted():
    simulation, _ = small_simulation("strategy=scaffold", "optimizer=momentum", "optimizer.weight_decay=0.01")
    simulation.strategy.check_optimizer(partial(torch.optim.SGD, lr=0.1, momentum=0.9)([torch.zeros(1)]))
