"""What all strategies share: averaging of models, BatchNorm statistics, and learning-rate schedules."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch.testing import assert_close

from fedkd.federation.aggregation import average, mean_batchnorm_statistics
from fedkd.federation.client import batchnorm_statistic_names
from fedkd.types import Update
from simulations.engine.local_engine import LocalGrid
from tests.small_runs import same_tensors, small_run, small_simulation, strategy_overrides


def update(client: int, value: float, num_examples: int, batches: int = 0) -> Update:
    return Update(client, num_examples, "mlp", {"model": {"w": torch.tensor([value, -value]), "n": torch.tensor(batches)}})


@pytest.mark.parametrize(("aggregation", "mean"), [("examples", 3.5), ("uniform", 3.0)])
def test_aggregation_weights(aggregation, mean):
    """Clients with 10 and 30 examples at 2 and 4: (10 * 2 + 30 * 4) / 40, or (2 + 4) / 2."""
    simulation, _ = small_simulation("strategy=fedavg", f"strategy.aggregation={aggregation}")
    updates = [update(0, 2.0, 10, 5), update(1, 4.0, 30, 7)]
    state, _ = simulation.strategy.aggregate(simulation.federation().server, {"other": {}}, updates, 1)
    assert state["model"]["w"].tolist() == [mean, -mean]
    assert state["model"]["n"] == 7 and state["model"]["n"].dtype == torch.int64
    assert "other" in state


@pytest.mark.parametrize("weights", [[0.2, 0.3, 0.5], [1 / 3] * 3, [1.0]])
def test_mean_of_identical_models(weights):
    simulation, _ = small_simulation("strategy=fedavg")
    mean = average([simulation.initial] * len(weights), weights)
    assert mean.keys() == simulation.initial.keys()
    for key, value in simulation.initial.items():
        assert_close(mean[key], value, rtol=1e-6, atol=1e-7)


def test_mean_batchnorm_statistics_of_trained_clients():
    def client_state(mean, num_examples, last_round, batches):
        counts = {"last_round": torch.tensor(last_round), "num_examples": torch.tensor(num_examples)}
        return {"local": {"mean": torch.tensor([mean]), "batches": torch.tensor(batches)}, "client": counts}

    actual = mean_batchnorm_statistics([client_state(1.0, 10, 2, 8), client_state(5.0, 30, 1, 4), client_state(99.0, 50, 0, 0)])
    assert actual["mean"].item() == 4.0 and actual["batches"] == 8
    assert mean_batchnorm_statistics([client_state(99.0, 50, 0, 0)]) == {} == mean_batchnorm_statistics([])


@pytest.mark.parametrize("name", ["fedavg", "fedgen", "feddistill", "feddistill_logits"])
@pytest.mark.parametrize("batchnorm", ["local", "averaged"])
def test_batchnorm_statistics_are_local_or_averaged(name, batchnorm, monkeypatch):
    sent, returned = [], []
    simulation, text = small_simulation(f"strategy={name}", *strategy_overrides(name), f"strategy.batchnorm={batchnorm}", "rounds=2")
    stays, original = batchnorm_statistic_names(simulation.model), simulation.strategy.aggregate
    monkeypatch.setattr(simulation.strategy, "aggregate", lambda server, state, updates, number: (
        sent.append(state), returned.extend(updates), original(server, state, updates, number))[2])  # fmt: skip
    grid = LocalGrid(simulation.config.num_clients, text)
    simulation.strategy.start(grid, num_rounds=2)
    travel = [{key for part in state.values() for key in part} & stays for state in (*sent, *(u.state for u in returned))]
    if batchnorm == "local":
        assert not any(travel)
        kept = [{key.partition(":")[2] for key in record} for record in grid.client_states.values()]
        assert kept and all(stays <= keys for keys in kept)
    elif name != "feddistill_logits":
        assert all(keys == stays for keys in travel)
        assert not any(key.startswith("local:") for record in grid.client_states.values() for key in record)


def test_global_model_has_mean_of_local_statistics():
    ran = small_run("strategy=fedavg", "strategy.batchnorm=local")
    server = replace(ran.simulation.federation().server, client_states=ran.client_states)
    predicted = dict(ran.simulation.strategy.global_model(server, ran.state).state_dict())
    sizes = {client: len(ran.simulation.partition.train[client]) for client in ran.client_states}
    assert 3 <= len(sizes) and all(len(ran.client_states[k]["local"]) == 6 for k in sizes)
    for key, value in predicted.items():
        if key in ran.state["model"]:
            assert torch.equal(value, ran.state["model"][key])
        elif key.endswith("num_batches_tracked"):
            assert value == max(client_state["local"][key] for client_state in ran.client_states.values())
        else:
            mean = sum(size * ran.client_states[k]["local"][key] for k, size in sizes.items()) / sum(sizes.values())
            assert_close(value, mean)


def test_global_model_has_averaged_statistics():
    ran = small_run("strategy=fedavg", "strategy.batchnorm=averaged")
    server = replace(ran.simulation.federation().server, client_states=ran.client_states)
    assert same_tensors(dict(ran.simulation.strategy.global_model(server, ran.state).state_dict()), ran.state["model"])
    assert ran.state["model"]["stages.0.1.num_batches_tracked"] == 12  # three rounds of four steps, the maximum over clients


def test_absent_client_keeps_statistics_and_takes_the_broadcast():
    simulation, _ = small_simulation("strategy=fedavg")
    broadcast = simulation.strategy.init_server(simulation.federation().server)
    _, kept = simulation.strategy.train(simulation.client(0, 1), broadcast, None, 1)
    moved = {"model": {key: value + 1 for key, value in broadcast["model"].items()}}
    begun = simulation.strategy.initial_weights(simulation.client(0, 3), moved, kept)
    assert same_tensors({key: begun[key] for key in moved["model"]}, moved["model"])
    assert same_tensors({key: begun[key] for key in kept["local"]}, kept["local"])
    assert not torch.equal(begun["stages.0.1.running_mean"], simulation.initial["stages.0.1.running_mean"])


class RecordingSGD(torch.optim.SGD):
    """SGD that records its learning rates."""

    made: ClassVar[list[float]] = []

    def __init__(self, params, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.made.append(lr)


@pytest.mark.parametrize("schedule", ["last_participation", "round", "constant"])
def test_learning_rate_schedules(schedule, monkeypatch):
    """As in FedGen's public code, ``last_participation`` is ``lr * decay^r`` with r the 0-based round in which it last trained."""
    simulation, text = small_simulation(
        "strategy=fedavg", f"strategy.lr_schedule={schedule}", f"optimizer._target_={__name__}.RecordingSGD", "rounds=7", "local_steps=1",
        "clients_per_round=2", "num_clients=5",
    )  # fmt: skip
    monkeypatch.setattr(RecordingSGD, "made", [])
    simulation.strategy.start(LocalGrid(5, text), num_rounds=7)
    expected, last = [], {}
    for zero_based in range(7):
        for client in simulation.strategy.sample_clients(range(5), zero_based + 1):
            exponent = {"constant": 0, "round": zero_based, "last_participation": last.get(client, 0)}[schedule]
            expected.append(0.01 * 0.99**exponent)
            last[client] = zero_based
    assert [*RecordingSGD.made[:2], *RecordingSGD.made[3:]] == pytest.approx(expected, rel=1e-12), "one more step finds the form of updates"
    assert len(set(expected)) == 1 if schedule == "constant" else len(set(expected)) > 3
