"""Model heterogeneity: the assignment of networks to clients, federations of such clients, and invalid settings."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from fedkd.config.build import config_hash
from fedkd.models.base import Classifier
from fedkd.models.heterogeneous import HeterogeneousModels
from fedkd.models.pooled_embedding import PooledEmbedding
from fedkd.seed import Seed
from fedkd.types import Task
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.setup.clients import make_networks
from simulations.setup.compatibility import build_strategy
from tests.small_runs import SMALL, same_tensors, small_run, small_simulation

NETWORKS = dict.fromkeys(("a", "b", "c"), lambda task: None)


def models(assignment: str, proportions=None, client_models=None, embedding_size=None) -> HeterogeneousModels:
    return HeterogeneousModels(
        networks=NETWORKS, assignment=assignment, proportions=proportions, client_models=client_models, embedding_size=embedding_size
    )


def assigned(number: int, *arguments, seed: int = 0) -> list[str]:
    return models(*arguments).assign(number, np.random.default_rng(seed))


def test_clients_get_networks_in_turn():
    assert assigned(7, "in_turn") == list("abcabca")


def test_clients_get_the_listed_networks():
    assert assigned(3, "listed", None, ["c", "a", "c"]) == ["c", "a", "c"]


@pytest.mark.parametrize(
    ("proportions", "counts"), [([2, 1, 1], (5, 3, 2)), ([1, 1, 1], (3, 4, 3)), ([0.8, 0.1, 0.1], (8, 1, 1)), (None, (3, 4, 3))]
)
def test_proportions_fix_the_numbers_and_clients_are_drawn(proportions, counts):
    drawn = [assigned(10, "proportions", proportions, seed=seed) for seed in range(5)]
    assert all(Counter(one) == Counter(dict(zip("abc", counts))) for one in drawn)
    assert len(set(map(tuple, drawn))) > 1


def test_each_client_draws_a_network_at_random():
    counts = Counter(assigned(20_000, "random", [3, 1, 0.001]))
    assert counts["a"] / 20_000 == pytest.approx(0.75, abs=0.02) and counts["c"] < 40
    assert assigned(50, "random") != assigned(50, "random", seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("alphabetically",), "assignment must be one of in_turn, proportions, random, listed, got 'alphabetically'"),
        (("proportions", [1, 2]), "proportions must hold one number > 0 for each of the 3 networks"),
        (("proportions", [1, 2, 0]), "proportions must hold one number > 0"),
        (("listed",), "client_models must name a network for each client where assignment=listed"),
        (("in_turn", None, ["a"]), "client_models must name a network for each client where assignment=listed, and be null"),
        (("listed", None, ["a", "d"]), "client_models must name networks .a, b, c., got 'd'"),
        (("in_turn", None, None, 0), "embedding_size must be > 0, or null for the networks' own sizes, got 0"),
    ],
)
def test_invalid_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        models(*arguments)


def test_the_list_must_name_one_network_per_client():
    with pytest.raises(ValueError, match="client_models must name one network for each of 4 clients"):
        assigned(4, "listed", None, ["a", "b"])


def test_clients_with_the_same_network_begin_with_the_same_weights():
    simulation, _ = small_simulation("model=heterogeneous", "strategy=feddistill_logits")
    names = [simulation.client(k, 1).architecture for k in range(6)]
    assert names == ["cnn_small", "cnn_wide", "mlp"] * 2
    assert simulation.client(0, 1).model is simulation.client(3, 1).model is not simulation.client(1, 1).model
    assert simulation.initial is simulation.client(0, 1).initial
    single, _ = small_simulation("model=mlp", "strategy=feddistill_logits")
    assert single.client(0, 1).initial.keys() == simulation.client(2, 1).initial.keys()


def test_clients_trained_together_have_the_same_network():
    simulation, _ = small_simulation("model=heterogeneous", "strategy=feddistill_logits", "batch_size=8")
    chunks = simulation.split_into_chunks(range(6), 5, 1)
    assert sorted(map(sorted, chunks)) == [[0, 3], [1, 4], [2, 5]]


def test_initial_weights_of_a_network_do_not_depend_on_the_other_networks():
    one, _ = small_simulation("model=heterogeneous", "strategy=feddistill_logits")
    two, _ = small_simulation("model=heterogeneous", "strategy=feddistill_logits", "+model@model.networks.more=mlp")
    assert same_tensors(one.client(1, 1).initial, two.client(1, 1).initial)
    assert two.client(3, 1).architecture == "more"


@pytest.mark.parametrize("group", ["heterogeneous4", "heterogeneous8"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_the_networks_of_a_group_have_embeddings_of_one_size(group, shape):
    number = int(group[-1])
    config, task = compose([f"model={group}", f"num_clients={number + 1}"]), Task("t", shape, 10)
    networks, server = make_networks(config, task, torch.float32, Seed(0), build_strategy(config))
    assert len({network.name for network in networks}) == number and networks[number] is networks[0] is server
    for network in networks[:number]:
        output = network.model.eval()(torch.rand(2, *shape))
        assert output.embedding.shape == (2, 64) == (2, network.model.embedding_size) and output.logits.shape == (2, 10)
        assert torch.equal(network.model.head(output.embedding), output.logits)


@pytest.mark.parametrize(("size", "means"), [(2, [1.0, 4.0]), (4, [0.5, 1.5, 3.5, 4.5]), (6, [0, 1, 2, 3, 4, 5])])
def test_an_embedding_is_averaged_over_its_neighbors(size, means):
    network = Classifier(Task("t", (6,), 3), [torch.nn.Identity()], torch.nn.Identity(), torch.nn.Linear(6, 3), 6)
    output = PooledEmbedding(network, size)(torch.arange(6.0).expand(2, 6))
    assert output.embedding.tolist() == [means] * 2 and output.logits.shape == (2, 3)


def test_a_key_of_a_later_version_changes_no_hash_where_it_is_null():
    config = compose(["model=heterogeneous"])
    older = OmegaConf.create({**config, "model": {key: value for key, value in config.model.items() if key != "embedding_size"}})
    assert config_hash(older, {}) == config_hash(config, {})
    assert config_hash(compose(["model=heterogeneous", "model.embedding_size=8"]), {}) != config_hash(config, {})


def test_a_group_of_networks_shares_a_head_that_learns_from_embeddings_of_all():
    """Networks of four kinds, of which two clients each train as one program."""
    overrides = ("model=heterogeneous4", "clients_per_vmap=5", "num_clients=8", "clients_per_round=8", "rounds=1", "local_steps=1")
    ran = small_run("strategy=fedgh", *overrides)
    assert (10, 64) in {tuple(value.shape) for part in ran.state.values() for value in part.values()}
    assert len({ran.simulation.client(k, 1).architecture for k in ran.client_states}) == 4


def test_fedgen_s_generator_learns_from_heads_of_different_networks():
    """Its embeddings train the heads of all clients: with alpha > 0 the heads differ from those with alpha = 0."""
    overrides = (
        "model=heterogeneous",
        "strategy=fedgen",
        "strategy.shared_layers=head",
        "strategy.generator_steps=4",
        "clients_per_round=6",
    )
    ran, without = small_run(*overrides), small_run(*overrides, "strategy.alpha=0")
    assert not same_tensors(ran.state["model"], without.state["model"])
    for client in range(6):
        local = ran.client_states[client]["local"]
        extractor = next(key for key in local if key.endswith("weight"))
        assert not torch.equal(local[extractor], ran.simulation.client(client, 1).initial[extractor])


def test_every_client_s_model_can_be_tested_on_all_examples(tmp_path):
    """``evaluation.local_test=all_examples`` tests every model on the whole test set. The rows name the network."""
    overrides = [option for option in SMALL if not option.startswith(("evaluation", "rounds"))]
    overrides += [
        "model=heterogeneous",
        "strategy=feddistill_logits",
        "evaluation.local_test=all_examples",
        "rounds=2",
        "progress=false",
        f"output={tmp_path}",
    ]
    folder = run_federation(compose(overrides))
    rows = pd.read_csv(folder / "clients.csv").query("round == 2")
    assert rows["architecture"].tolist() == ["cnn_small", "cnn_wide", "mlp"] * 2 and set(rows["num_test_examples"]) == {355}
    ran = small_run(*overrides[:-2])
    shared = {part: ran.state[part] for part in ran.simulation.strategy.broadcast_parts}
    for client, accuracy in zip(rows["client_id"], rows["local_test_accuracy"]):
        site = replace(ran.simulation.client(client, 2), data=ran.simulation.global_test)
        assert ran.simulation.strategy.evaluate(site, shared, ran.client_states.get(client), 1, 100)[""].accuracy == pytest.approx(
            accuracy, abs=1e-12
        )
