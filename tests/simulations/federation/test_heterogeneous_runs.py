"""Runs with all kinds of system heterogeneity: equal in every engine and after a resume, and Flower's own strategies."""

from functools import partial

import pytest

from fedkd.checkpoint import read_checkpoint
from simulations.config import compose
from simulations.engine.ray_engine import RayGrid
from simulations.federation.runner import run_federation
from simulations.setup.simulation import build_simulation
from tests.processes import TINY, differing, metrics
from tests.small_runs import InterruptedGrid

ALL = (
    *TINY, "num_clients=10", "clients_per_round=5", "rounds=8", "clients_per_vmap=2", "checkpoint_every=3", "evaluation.every=3",
    "systems.client_sampling=proportional", "systems.dropout_rate=0.25", "systems.straggler_rate=0.5", "systems.deadline=4",
    "systems.speed_sigma=0.8", "systems.bandwidth_sigma=0.8", "systems.examples_per_second=100", "systems.bytes_per_second=3e5",
    "systems.num_new_clients=3", "systems.new_clients_join_round=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The folder of a run with all kinds of heterogeneity, in this process."""
    return run_federation(compose([*ALL, f"output={tmp_path_factory.mktemp('complete')}", "engine=local"]))


def test_every_kind_of_heterogeneity_occurs(complete):
    table = metrics(complete)
    for column in ("num_dropouts", "num_missed_deadline"):
        assert table[column].astype(int).sum() > 0, column
    assert (table[["num_clients_aggregated", "num_dropouts", "num_missed_deadline"]].astype(int).sum(axis=1) == 5).all()
    time = table["simulated_seconds"].astype(float)
    assert time.is_monotonic_increasing and time.diff().max() <= 4 < time.iloc[-1]
    assert read_checkpoint(complete).simulated_seconds == time.iloc[-1]


def test_engines_agree(complete, tmp_path):
    alone = {"num_gpus": 0.0, "address": None, "patience": 0.0, "ship_code": False}
    ray = run_federation(compose([*ALL, f"output={tmp_path}"]), partial(RayGrid, workers=2, **alone))
    assert set(differing(ray, complete)) <= {"config.yaml"}, "config.yaml names the engine"


@pytest.mark.parametrize("interrupted_round", [2, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(complete, tmp_path, interrupted_round):
    """In round 2 there are rows but no checkpoint. In round 6 there is a checkpoint of round 3."""
    given = [*ALL, f"output={tmp_path}", "engine=local"]
    with pytest.raises(KeyboardInterrupt):
        run_federation(compose(given), partial(InterruptedGrid, interrupted_round=interrupted_round))
    (folder,) = (tmp_path / "digits").iterdir()
    assert (folder / "checkpoint.json").exists() == (interrupted_round == 6)
    assert run_federation(compose(given)) == folder
    assert set(differing(folder, complete)) <= {"config.yaml"}, "config.yaml names the output folder"


FLOWER_STRATEGY = ("~strategy", "+strategy._target_=flwr.serverapp.strategy.FedAvg", "+strategy.fraction_evaluate=0.0")
SMALL_RUN = [word for word in TINY if not word.startswith("strategy.")]


@pytest.mark.parametrize(
    "option", ["client_sampling=cyclic", "dropout_rate=0.1", "straggler_rate=0.1", "deadline=9.5", "num_new_clients=1"]
)
def test_flower_strategies_allow_default_rules_only(tmp_path, option):
    name, _, value = option.partition("=")
    with pytest.raises(ValueError, match=rf"^systems\.{name} must be \S+ with FedAvg, which chooses clients itself.*got '?{value}'?$"):
        run_federation(compose(["engine=local", *SMALL_RUN, *FLOWER_STRATEGY, f"systems.{option}", f"output={tmp_path / 'runs'}"]))
    assert not (tmp_path / "runs").exists()


def test_simulated_clock_of_a_flower_strategy(tmp_path):
    """Three steps of 32 examples, and the model in both directions."""
    rates = ("systems.examples_per_second=10", "systems.bytes_per_second=1e3")
    folder = run_federation(compose([*SMALL_RUN, *FLOWER_STRATEGY, *rates, "rounds=2", "engine=local", f"output={tmp_path}"]))
    table, simulation = metrics(folder), build_simulation((folder / "config.yaml").read_text())
    model = sum(value.numel() * value.element_size() for value in read_checkpoint(folder).state["model"].values())
    most = max(simulation.workload(client)[0] for client in range(6))
    seconds = 2 * model / 1e3 + 3 * most / 10
    assert table["simulated_seconds"].astype(float).tolist() == pytest.approx([seconds, 2 * seconds])
    assert set(table["num_clients_aggregated"]) == {"6"} and set(table["num_dropouts"]) == set(table["num_missed_deadline"]) == {"0"}
