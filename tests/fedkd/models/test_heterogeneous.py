"""Clients of unlike networks: who has which, what is made of them, and what is refused."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fedkd.models.heterogeneous import HeterogeneousModels
from simulations.config import compose
from simulations.federation.runner import run_federation
from tests.small_runs import SMALL, small_run, same_tensors, small_simulation

NETWORKS = dict.fromkeys(("a", "b", "c"), lambda task: None)


def mixed(assignment: str, shares=None, clients=None) -> HeterogeneousModels:
    return HeterogeneousModels(networks=NETWORKS, assignment=assignment, shares=shares, clients=clients)


def assigned(number: int, *given, seed: int = 0) -> list[str]:
    return mixed(*given).assign(number, np.random.default_rng(seed))


def test_in_turn():
    assert assigned(7, "in_turn") == list("abcabca")


def test_listed():
    assert assigned(3, "listed", None, ["c", "a", "c"]) == ["c", "a", "c"]


@pytest.mark.parametrize(
    ("shares", "counts"), [([2, 1, 1], (5, 3, 2)), ([1, 1, 1], (3, 4, 3)), ([0.8, 0.1, 0.1], (8, 1, 1)), (None, (3, 4, 3))]
)
def test_by_share_the_numbers_are_fixed_and_the_clients_drawn(shares, counts):
    drawn = [assigned(10, "shares", shares, seed=seed) for seed in range(5)]
    assert all(Counter(one) == Counter(dict(zip("abc", counts))) for one in drawn)
    assert len(set(map(tuple, drawn))) > 1


def test_at_random_each_client_draws():
    counts = Counter(assigned(20_000, "random", [3, 1, 0.001]))
    assert counts["a"] / 20_000 == pytest.approx(0.75, abs=0.02) and counts["c"] < 40
    assert assigned(50, "random") != assigned(50, "random", seed=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("alphabetically",), "assignment must be one of in_turn, shares, random, listed, got 'alphabetically'"),
        (("shares", [1, 2]), "shares must hold one number > 0 for each of the 3 networks"),
        (("shares", [1, 2, 0]), "shares must hold one number > 0"),
        (("listed",), "clients must name a network for each client where assignment=listed"),
        (("in_turn", None, ["a"]), "clients must name a network for each client where assignment=listed, and be null"),
        (("listed", None, ["a", "d"]), "clients must name networks .a, b, c., got 'd'"),
    ],
)
def test_what_means_nothing_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        mixed(*given)


def test_as_many_names_as_clients():
    with pytest.raises(ValueError, match="clients must name one network for each of 4 clients"):
        assigned(4, "listed", None, ["a", "b"])


def test_every_client_trains_its_own_network_from_the_same_weights_as_its_kin():
    simulation, _ = small_simulation("model=heterogeneous", "strategy=feddistill_logits")
    names = [simulation.client(k, 1).architecture for k in range(6)]
    assert names == ["cnn_small", "cnn_wide", "mlp"] * 2
    assert simulation.client(0, 1).model is simulation.client(3, 1).model is not simulation.client(1, 1).model
    assert simulation.initial is simulation.client(0, 1).initial
    single, _ = small_simulation("model=mlp", "strategy=feddistill_logits")
    assert single.client(0, 1).initial.keys() == simulation.client(2, 1).initial.keys()


def test_a_cohort_is_of_one_network():
    simulation, _ = small_simulation("model=heterogeneous", "strategy=feddistill_logits", "batch_size=8")
    chunks = simulation.split_into_chunks(range(6), 5, 1)
    assert sorted(map(sorted, chunks)) == [[0, 3], [1, 4], [2, 5]]


def test_what_a_network_is_does_not_depend_on_the_others():
    """Another network more, and the weights of those that were there stay."""
    one, _ = small_simulation("model=heterogeneous", "strategy=feddistill_logits")
    two, _ = small_simulation("model=heterogeneous", "strategy=feddistill_logits", "+model@model.networks.more=mlp")
    assert same_tensors(one.client(1, 1).initial, two.client(1, 1).initial)
    assert two.client(3, 1).architecture == "more"


def test_fedgen_s_generator_learns_from_heads_of_unlike_networks():
    """And what it makes reaches the heads of all: with alpha they end elsewhere than without."""
    given = ("model=heterogeneous", "strategy=fedgen", "strategy.shared_layers=head", "strategy.generator_steps=4", "clients_per_round=6")
    ran, without = small_run(*given), small_run(*given, "strategy.alpha=0")
    assert not same_tensors(ran.state["model"], without.state["model"])
    for client in range(6):
        local = ran.client_states[client]["local"]
        extractor = next(key for key in local if key.endswith("weight"))
        assert not torch.equal(local[extractor], ran.simulation.client(client, 1).initial[extractor])


def test_every_client_s_model_can_be_scored_on_all_labels(tmp_path):
    """With ``evaluation.local_test=all_examples`` each of them on the whole test set, as an evaluation by itself says; the rows name its network."""
    given = [option for option in SMALL if not option.startswith(("evaluation", "rounds"))]
    given += [
        "model=heterogeneous",
        "strategy=feddistill_logits",
        "evaluation.local_test=all_examples",
        "rounds=2",
        "progress=false",
        f"output={tmp_path}",
    ]
    folder = run_federation(compose(given))
    rows = pd.read_csv(folder / "clients.csv").query("round == 2")
    assert rows["architecture"].tolist() == ["cnn_small", "cnn_wide", "mlp"] * 2 and set(rows["num_test_examples"]) == {355}
    ran = small_run(*given[:-2])
    shared = {part: ran.state[part] for part in ran.simulation.strategy.broadcast_parts}
    for client, accuracy in zip(rows["client"], rows["local_test_accuracy"]):
        site = replace(ran.simulation.client(client, 2), data=ran.simulation.global_test)
        assert ran.simulation.strategy.evaluate(site, shared, ran.client_states.get(client), 100).accuracy == pytest.approx(accuracy, abs=1e-12)
