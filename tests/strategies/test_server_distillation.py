"""Laws of all strategies with server-side distillation."""

import csv
from dataclasses import replace

import pytest
import torch

from fedkd.checkpoint import read_checkpoint
from fedkd.errors import ConfigError
from fedkd.federation.aggregation import average
from fedkd.federation.client import batchnorm_statistic_names
from fedkd.metrics.accuracy import evaluate
from simulations.config import compose
from simulations.federation.runner import run_federation
from tests.small_runs import SMALL, same_tensors, small_run, strategy_overrides
from tests.strategies.server_tools import clone, trained_clients

UNLIKE = ("model=heterogeneous", "clients_per_round=6", "rounds=2", "local_steps=2")


@pytest.mark.parametrize("name", ["feddf", "dense", "coboosting", "dfrd"])
def test_unlike_networks(name):
    """Clients 0 and 3 have the server's network. The student starts from their mean, and all six clients teach it."""
    ran = small_run(f"strategy={name}", *strategy_overrides(name), *UNLIKE)
    strategy, simulation, states = ran.simulation.strategy, ran.simulation, ran.client_states
    server, broadcast = simulation.federation().server, {"model": ran.state["model"]}
    assert [network.model is simulation.model for network in simulation.networks] == [True, False, False] * 2
    updates = [strategy.train(simulation.client(k, 3), broadcast, states[k], 3)[0] for k in range(6)]
    assert all(update.state["model"].keys() == simulation.networks[update.client].initial.keys() for update in updates)
    after, _ = strategy.aggregate(server, ran.state, updates, 3)
    alike = [updates[0], updates[3]]
    assert same_tensors(after["average"], average([u.state["model"] for u in alike], strategy.aggregation_weights(alike)))
    fewer, _ = strategy.aggregate(server, ran.state, [update for update in updates if update.client != 4], 3)
    assert same_tensors(fewer["average"], after["average"]) and not same_tensors(fewer["model"], after["model"])
    none, _ = strategy.aggregate(server, ran.state, [updates[1]], 3)
    assert same_tensors(none["average"], ran.state["model"]) and not same_tensors(none["model"], ran.state["model"])
    for number in range(6):
        client = simulation.client(number, 3)
        start = strategy.initial_weights(client, broadcast, states[number])
        assert same_tensors(start, ran.state["model"] if client.has_server_network else states[number]["model"])
        assert client.has_server_network or not same_tensors(start, client.initial), "the client's own model has been trained"
    accuracies = {
        column: evaluate(model, simulation.global_test, 1000, 10).accuracy for column, model in strategy.extra_models(server, after).items()
    }
    assert accuracies.keys() == {
        "global_test_accuracy_before_distillation",
        *([] if name in ("feddf", "dfrd") else ["ensemble_test_accuracy"]),
    }


def test_unlike_networks_in_a_run(tmp_path):
    """Global test, local tests and the ensemble's test are in the run folder, and a resumed run has the same bits."""
    words = (*SMALL, "strategy=dense", *strategy_overrides("dense"), *UNLIKE, "evaluation.every=1", "progress=false")
    folders = [run_federation(compose([*words, f"output={tmp_path / 'whole'}"]))]
    run_federation(compose([*words, f"output={tmp_path / 'parts'}", "rounds=1"]))
    folders.append(run_federation(compose([*words, f"output={tmp_path / 'parts'}"])))
    whole, parts = (read_checkpoint(folder) for folder in folders)
    assert same_tensors(whole.state, parts.state) and len(whole.client_states) == 6
    (_, *rows), (header, *_) = (list(csv.reader((folder / "metrics.csv").open())) for folder in folders)
    last = dict(zip(header, rows[-1]))
    assert all(0 < float(last[column]) <= 1 for column in ("global_test_accuracy", "local_test_accuracy", "ensemble_test_accuracy"))


SERVER_SIDE = ("feddf", "feddfusion", "dense", "fedftg", "coboosting", "dfrd")


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
@pytest.mark.parametrize("name", ["feddf", "dense", "fedftg", "coboosting", "dfrd"])
def test_server_with_other_networks_and_one_client(name, model):
    simulation, server, state, updates = trained_clients(name, f"model={model}", "local_steps=1")
    after, metrics = simulation.strategy.aggregate(server, state, updates[:1], 1)
    assert all(torch.isfinite(value).all() for value in after["model"].values())
    assert same_tensors(after["average"], updates[0].state["model"]) and len(metrics) >= 2


@pytest.mark.parametrize(("name", "other_start"), [("dense", "fresh"), ("coboosting", "fresh"), ("dfrd", "last")])
def test_statistics_of_the_student_are_those_of_its_images_or_the_average(name, other_start):
    """The parameters are trained either way. A student that does not start from the average has no statistics of data to keep."""
    for choice in ("images", "average"):
        simulation, server, state, updates = trained_clients(name, "local_steps=1", f"strategy.student_statistics={choice}")
        after, _ = simulation.strategy.aggregate(server, state, updates, 1)
        statistics = batchnorm_statistic_names(server.model)
        kept = {key for key, value in after["model"].items() if torch.equal(value, after["average"][key])}
        assert statistics and kept & statistics == (statistics if choice == "average" else set()) and "head.weight" not in kept
    with pytest.raises(ConfigError, match=r"student_statistics must be images, .* starts from the average .*got 'average'"):
        replace(simulation.strategy, student=other_start)
