"""Engines and numbers of workers give equal results, bit for bit."""

import shutil
from functools import partial

import pytest
from omegaconf import OmegaConf

from fedkd.checkpoint import read_checkpoint
from simulations.config import compose
from simulations.engine.local_engine import LocalGrid
from simulations.engine.ray_engine import RayGrid
from simulations.engine.worker import assign_chunks
from simulations.federation.runner import run_federation
from simulations.setup.simulation import build_simulation
from tests.processes import TINY, metrics
from tests.small_runs import STRATEGIES, same_tensors, small_simulation, strategy_overrides

ALONE = {"num_gpus": 0.0, "address": None, "patience": 0.0, "ship_code": False}
ENGINES = {
    "local": LocalGrid,
    **{f"ray{n}": partial(RayGrid, workers=n, **ALONE) for n in (1, 2, 3)},
}


RUNS = [(engine, name) for engine in ENGINES for name in ("fedgen", "fedgen clients_per_vmap=2")]


RUNS += [(engine, "feddistill_logits") for engine in ("local", "ray3")]


RUNS += [(engine, name) for engine in ("local", "ray2") for name in ("fedmd", "fedftg", "coboosting", "fml")]


RUNS += [(engine, "fedgen drift=class_incremental drift.num_tasks=3") for engine in ("local", "ray2")]


def overrides_of(name: str) -> list[str]:
    strategy, *more = name.split()
    tiny = TINY if strategy == "fedgen" else [*(o for o in TINY if not o.startswith("strategy.")), *strategy_overrides(strategy)]
    return [*tiny, f"strategy={strategy}", "rounds=3", *more]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A run folder for every engine and strategy."""
    output = tmp_path_factory.mktemp("engines")
    folders_by_run = {}
    for engine, strategy in RUNS:
        folders_by_run[engine, strategy] = run_federation(compose([*overrides_of(strategy), f"output={output / engine}"]), ENGINES[engine])
    return folders_by_run


@pytest.mark.parametrize("engine, strategy", [run for run in RUNS if run[0] != "local"])
def test_engines_agree_bit_for_bit(folders, engine, strategy):
    actual, local = (read_checkpoint(folders[name, strategy]) for name in (engine, "local"))
    assert actual.round == 3 and same_tensors(actual.state, local.state)
    assert len(local.client_states) >= 4 and same_tensors(actual.client_states, local.client_states)
    assert metrics(folders[engine, strategy]).equals(metrics(folders["local", strategy]))
    for name in ("clients.csv", "partition.npz", "checkpoint.safetensors", "checkpoint.json"):
        assert (folders[engine, strategy] / name).read_bytes() == (folders["local", strategy] / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_has_the_same_bits_with_ray(tmp_path, strategy):
    """Two actors, two clients of which train as one program."""
    words = [*overrides_of(strategy), "clients_per_vmap=2"]
    local, ray = (run_federation(compose([*words, f"output={tmp_path / name}"]), ENGINES[name]) for name in ("local", "ray2"))
    assert metrics(ray).equals(metrics(local))
    for name in ("clients.csv", "checkpoint.safetensors", "checkpoint.json"):
        assert (ray / name).read_bytes() == (local / name).read_bytes(), name


def test_client_states_of_feddistill_are_compared(folders):
    client_states = read_checkpoint(folders["local", "feddistill_logits"]).client_states
    assert all({"logits", "model", "local", "client"} <= set(client_state) for client_state in client_states.values())
    assert any(client_state["logits"]["count"].sum() > 3 * 32 for client_state in client_states.values()), (
        "at least one client has trained twice"
    )


def test_seed_changes_the_result(folders, tmp_path):
    other = run_federation(compose([*overrides_of("fedgen"), "seed=1", "engine=local", f"output={tmp_path}"]))
    assert not metrics(other).equals(metrics(folders["local", "fedgen"]))


def test_hash_ignores_keys_without_effect():
    def key(*overrides: str) -> str:
        return build_simulation(OmegaConf.to_yaml(compose([*TINY, *overrides]), resolve=True)).hash

    for same_result in (["engine=local"], ["engine.workers=7"], ["output=/elsewhere"], ["name=other"], ["on_client_failure=retry"],
                        ["checkpoint_every=5"], ["timeout=5"], ["progress=true"]):  # fmt: skip
        assert key(*same_result) == key("engine=ray"), same_result
    for other_result in (
        ["seed=1"],
        ["rounds=7"],
        ["precision=float64"],
        ["strategy.alpha=1"],
        ["evaluation.every=2"],
        ["partition.alpha=2"],
        ["on_client_failure=drop"],
        ["clients_per_vmap=2"],
    ):
        assert key(*other_result) != key("engine=ray"), other_result


def test_more_workers_than_clients(tmp_path):
    config = OmegaConf.to_yaml(compose([*TINY, "num_clients=2", "clients_per_round=2"]), resolve=True)
    grid = RayGrid(2, config, workers=64, **ALONE)
    assert grid.num_workers == 2
    grid.close()


def test_assign_chunks():
    chunks = [[3], [5], [8], [9], [11]]
    assert assign_chunks(chunks, 2, [1, 1, 1, 1, 1]) == [[[3], [8], [11]], [[5], [9]]]
    assert assign_chunks(chunks, 2, [1, 1, 4, 1, 1]) == [[[8]], [[3], [5], [9], [11]]], "one chunk costs as much as four others"
    assert assign_chunks([[3, 7], [5]], 4, [2, 1]) == [[[3, 7]], [[5]]], "at most one worker per chunk"


def test_finished_run_of_another_engine_is_skipped(folders, tmp_path, capsys):
    shutil.copytree(folders["ray2", "fedgen"].parents[1], tmp_path / "runs")
    folder = run_federation(compose([*overrides_of("fedgen"), "engine=local", f"output={tmp_path / 'runs'}"]))
    assert "already finished, skipped" in capsys.readouterr().err
    assert folder.name == folders["ray2", "fedgen"].name and folder != folders["ray2", "fedgen"]


class RecordingGrid(LocalGrid):
    """A grid that records messages, and when their replies are waited for."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.events: list[str] = []

    def send(self, messages, *, timeout=None):
        event = f"{messages[0].metadata.message_type} {messages[0].content['config']['server-round']}"
        self.events.append(event)
        wait = super().send(messages, timeout=timeout)
        return lambda: (self.events.append(f"waited for {event}"), wait())[1]


def test_evaluation_runs_in_parallel_with_server_and_next_round(monkeypatch):
    simulation, text = small_simulation(*overrides_of("fedgen"), "evaluation.every=1")
    grid, server_training = RecordingGrid(simulation.config.num_clients, text), simulation.strategy.server_training
    monkeypatch.setattr(
        simulation.strategy, "server_training", lambda *given: (grid.events.append("server training"), server_training(*given))[1]
    )
    result = simulation.strategy.start(grid, num_rounds=2, on_round=lambda done: grid.events.append(f"round {done.number}"))
    assert grid.events == [
        "train 1", "waited for train 1", "evaluate 1", "server training", "train 2", "waited for evaluate 1", "round 1",
        "waited for train 2", "evaluate 2", "server training", "waited for evaluate 2", "round 2",
    ]  # fmt: skip
    assert result.evaluate_metrics_serverapp.keys() == {1, 2} == result.train_metrics_clientapp.keys()
