"""FedBN, FedPer, FedRep, FedBABU and FedProto: what stays with clients, what is trained in each phase, and what is tested."""

import pytest
import torch

from fedkd.federation.client import batchnorm_names
from fedkd.federation.phase import is_body, is_head
from fedkd.federation.prototypes import prototype_scores
from fedkd.training.functional_model import FunctionalModel, load
from simulations.config import compose
from simulations.federation.runner import run_federation
from tests.processes import metrics
from tests.public_code import public_code
from tests.small_runs import SMALL, same_tensors, small_run, small_simulation, strategy_overrides


def test_the_nearest_prototypes_of_public_code():
    arrays = public_code("fedproto")
    scores = prototype_scores(arrays["embeddings"], arrays["prototypes"], torch.ones(4))
    assert torch.equal(scores.argmax(1), arrays["nearest"])


def test_a_class_without_a_prototype_is_chosen_last():
    scores = prototype_scores(torch.randn(5, 3), torch.randn(4, 3), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert (scores[:, [1, 3]] < scores[:, [0, 2]].min(1, keepdim=True).values).all() and torch.isfinite(scores).all()


@pytest.mark.parametrize(("prediction", "other"), [("prototypes", "head"), ("head", "prototypes")])
def test_fedproto_is_tested_by_prototypes_or_by_heads(tmp_path, prediction, other):
    words = [*SMALL, "strategy=fedproto", f"strategy.prediction={prediction}", "evaluation.every=1", "progress=false", f"output={tmp_path}"]
    table = metrics(run_federation(compose([*words, "local_steps=20", "optimizer.lr=0.1"])))
    found = table[[f"local_test_accuracy_{other}", "local_test_accuracy"]].astype(float)
    assert found.iloc[-1].between(0.0, 1.0).all() and found.iloc[-1].nunique() == 2


def test_own_classes_bound_the_prediction_of_fedproto():
    ran = small_run("strategy=fedproto", "strategy.candidates=own", "clients_per_round=6", "partition.alpha=0.1")
    for client, state in ran.client_states.items():
        tested = ran.simulation.client(client, 3, testing=True)
        present = torch.bincount(tested.train_data.y, minlength=10) > 0
        assert not (state["classes"]["own"][~present]).any()
        model = FunctionalModel(tested.model.eval())
        load(tested.model, ran.simulation.strategy.test_weights(tested, ran.state, state))
        scores = ran.simulation.strategy.predict_client(model, tested.data.images(torch.arange(len(tested.data))), ran.state, state)
        assert state["classes"]["own"][scores[""].argmax(1)].all()


def part(tensors, chosen):
    """The tensors whose name is chosen."""
    return {key: value for key, value in tensors.items() if chosen(key)}


def test_batchnorm_layers_stay_with_the_clients_of_fedbn():
    ran = small_run("strategy=fedbn", "clients_per_round=6")
    names = batchnorm_names(ran.simulation.model)
    assert names and not names & ran.state["model"].keys()
    for state in ran.client_states.values():
        assert state["local"].keys() == names
    weights = [next(value for key, value in state["local"].items() if key.endswith("weight")) for state in ran.client_states.values()]
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("name", ["fedper", "fedrep", "fedbabu"])
def test_heads_stay_with_the_clients(name):
    ran = small_run(f"strategy={name}", *strategy_overrides(name))
    assert not part(ran.state["model"], is_head)
    assert all(part(state["local"], is_head) for state in ran.client_states.values())
    assert ran.simulation.strategy.global_model(ran.simulation.federation().server, ran.state) is None


def trained_in_phases(name):
    """The simulation of a strategy, and for each phase of a client which parameters it has changed."""
    simulation, _ = small_simulation(f"strategy={name}", *strategy_overrides(name))
    strategy, client = simulation.strategy, simulation.client(0, 1)
    broadcast = strategy.init_server(simulation.federation().server)
    state = strategy._new_client_state(client)
    tensors, changed = strategy.initial_weights(client, broadcast, state), []
    for phase in strategy.local_phases(client, broadcast, state, 1):
        after = strategy._fit(client, [phase], tensors, broadcast, state).tensors
        names = [key for key, _ in client.model.named_parameters()]
        changed.append({key for key in names if not torch.equal(after[key], tensors[key])})
        tensors = after
    return simulation, changed


def test_fedrep_trains_the_head_alone_and_then_the_rest_alone():
    simulation, (first, second) = trained_in_phases("fedrep")
    names = {key for key, _ in simulation.client(0, 1).model.named_parameters()}
    assert first == {key for key in names if is_head(key)} and second and second <= {key for key in names if is_body(key)}


def test_the_head_of_fedbabu_keeps_its_initial_bits():
    ran = small_run("strategy=fedbabu", *strategy_overrides("fedbabu"), "clients_per_round=6")
    for client, state in ran.client_states.items():
        assert same_tensors(part(state["local"], is_head), part(ran.simulation.client(client, 1).initial, is_head))


@pytest.mark.parametrize("name", ["fedrep", "fedbabu"])
def test_fine_tuning_changes_what_is_tested_and_nothing_else(name):
    with_tuning, without = (
        small_run(f"strategy={name}", *strategy_overrides(name), f"strategy.finetune_steps={steps}", "optimizer.lr=0.1")
        for steps in (20, 0)
    )
    assert same_tensors(with_tuning.state, without.state) and same_tensors(with_tuning.client_states, without.client_states)
    scores = []
    for ran in (with_tuning, without):
        client = min(ran.client_states)
        before = {key: value.clone() for key, value in ran.client_states[client]["local"].items()}
        tested = ran.simulation.client(client, 3, testing=True)
        scores.append(ran.simulation.strategy.evaluate(tested, ran.state, ran.client_states[client], 3, 100)[""])
        assert same_tensors(ran.client_states[client]["local"], before)
    assert scores[0].loss < scores[1].loss and torch.equal(scores[0].total, scores[1].total)


def test_layers_are_shared_by_pattern():
    """What matches is averaged; the rest stays."""
    ran = small_run("strategy=fedavg", "strategy.shared_layers=head.*|stages.0.*")
    shared, stays = ran.state["model"].keys(), next(iter(ran.client_states.values()))["local"].keys()
    assert shared and all(key.startswith(("head.", "stages.0.")) for key in shared)
    statistics = {key for key in stays if key.startswith("stages.0.")}
    assert all("running" in key or "tracked" in key for key in statistics), "BatchNorm statistics stay too"
    assert {key for key in stays - statistics if not key.startswith(("stages.1.", "embed."))} == set()
