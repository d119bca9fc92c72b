"""The engine and the number of workers change no bit."""

import shutil
from functools import partial

import pytest
from omegaconf import OmegaConf

from fedkd.checkpoint import read_checkpoint
from simulations.config import compose
from simulations.engine.local_engine import LocalGrid
from simulations.engine.ray_engine import RayGrid
from simulations.engine.worker import split
from simulations.federation.runner import run_federation
from simulations.setup.simulation import build_simulation
from tests.conftest import options, same, settle
from tests.processes import TINY, metrics

ENGINES = {"local": LocalGrid, **{f"ray{n}": partial(RayGrid, workers=n, num_gpus=0.0, address=None) for n in (1, 2, 3)}}
RUNS = [(engine, name) for engine in ENGINES for name in ("fedgen", "fedgen clients_per_vmap=2")]
RUNS += [(engine, "feddistill_logits") for engine in ("local", "ray3")]
RUNS += [(engine, name) for engine in ("local", "ray2") for name in ("feddf", "fedmd", "dense", "fedftg")]


def small(name: str) -> list[str]:
    strategy, *more = name.split()
    tiny = TINY if strategy == "fedgen" else [*(o for o in TINY if not o.startswith("strategy.")), *options(strategy)]
    return [*tiny, f"strategy={strategy}", "rounds=3", *more]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A run folder for every engine and strategy."""
    output = tmp_path_factory.mktemp("engines")
    found = {}
    for engine, strategy in RUNS:
        found[engine, strategy] = run_federation(compose([*small(strategy), f"output={output / engine}"]), ENGINES[engine])
    return found


@pytest.mark.parametrize("engine, strategy", [run for run in RUNS if run[0] != "local"])
def test_engines_agree_bit_for_bit(folders, engine, strategy):
    ours, local = (read_checkpoint(folders[name, strategy]) for name in (engine, "local"))
    assert ours.round == 3 and same(ours.state, local.state)
    assert len(local.memories) >= 4 and same(ours.memories, local.memories)
    assert metrics(folders[engine, strategy]).equals(metrics(folders["local", strategy]))
    for name in ("clients.csv", "partition.npz", "checkpoint.safetensors", "checkpoint.json"):
        assert (folders[engine, strategy] / name).read_bytes() == (folders["local", strategy] / name).read_bytes(), name


def test_the_memory_of_feddistill_is_there_to_be_compared(folders):
    memories = read_checkpoint(folders["local", "feddistill_logits"]).memories
    assert all({"logits", "model", "local", "client"} <= set(memory) for memory in memories.values())
    assert any(memory["logits"]["count"].sum() > 3 * 32 for memory in memories.values()), "somebody trained twice"


def test_the_seed_changes_the_result(folders, tmp_path):
    other = run_federation(compose([*small("fedgen"), "seed=1", "engine=local", f"output={tmp_path}"]))
    assert not metrics(other).equals(metrics(folders["local", "fedgen"]))


def test_what_cannot_change_the_result_does_not_enter_the_hash():
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


def test_workers_beyond_the_machine_and_beyond_the_clients(tmp_path):
    grid = RayGrid(
        2, OmegaConf.to_yaml(compose([*TINY, "num_clients=2", "clients_per_round=2"]), resolve=True), workers=64, num_gpus=0.0, address=None
    )
    assert grid.num_workers == 2
    grid.close()


def test_split_deals_out_whole_chunks_by_load():
    chunks = [[3], [5], [8], [9], [11]]
    assert split(chunks, 2, [1, 1, 1, 1, 1]) == [[[3], [8], [11]], [[5], [9]]]
    assert split(chunks, 2, [1, 1, 4, 1, 1]) == [[[8]], [[3], [5], [9], [11]]], "one heavy chunk is as much as four light ones"
    assert split([[3, 7], [5]], 4, [2, 1]) == [[[3, 7]], [[5]]], "no more shares than chunks"


def test_a_finished_run_of_one_engine_is_finished_for_the_other(folders, tmp_path, capsys):
    shutil.copytree(folders["ray2", "fedgen"].parents[1], tmp_path / "runs")
    folder = run_federation(compose([*small("fedgen"), "engine=local", f"output={tmp_path / 'runs'}"]))
    assert "finished already, skipped" in capsys.readouterr().out
    assert folder.name == folders["ray2", "fedgen"].name and folder != folders["ray2", "fedgen"]


class Watching(LocalGrid):
    """Notes what it is asked, and when somebody waits for that."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.notes: list[str] = []

    def begin(self, messages, *, timeout=None):
        what = f"{messages[0].metadata.message_type} {messages[0].content['config']['server-round']}"
        self.notes.append(what)
        wait = super().begin(messages, timeout=timeout)
        return lambda: (self.notes.append(f"waited for {what}"), wait())[1]


def test_a_round_is_evaluated_while_the_server_refines_and_the_next_one_trains(monkeypatch):
    home, text = settle(*small("fedgen"), "evaluation.every=1")
    grid, refine = Watching(home.config.num_clients, text), home.strategy.server_training
    monkeypatch.setattr(home.strategy, "server_training", lambda *given: (grid.notes.append("refined"), refine(*given))[1])
    result = home.strategy.start(grid, num_rounds=2, on_round=lambda done: grid.notes.append(f"round {done.number}"))
    assert grid.notes == [
        "train 1", "waited for train 1", "evaluate 1", "refined", "train 2", "waited for evaluate 1", "round 1",
        "waited for train 2", "evaluate 2", "refined", "waited for evaluate 2", "round 2",
    ]  # fmt: skip
    assert result.evaluate_metrics_serverapp.keys() == {1, 2} == result.train_metrics_clientapp.keys()
