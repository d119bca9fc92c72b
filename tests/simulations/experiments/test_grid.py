"""``fedkd sweep``: combinations, and many runs at a time."""

import re
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from fedkd.errors import ConfigError
from fedkd.training import step_counter
from simulations import progress
from simulations.cli.main import cli
from simulations.config import compose
from simulations.experiments.grid import expand, plan_grid
from simulations.experiments.sweep import Process, RoundSender, hear
from simulations.federation.runner import run_federation
from simulations.run_folder.listing import list_folder

TINY = ("num_clients=4", "clients_per_round=2", "local_steps=2", "clients_per_vmap=1", "rounds=2")


@pytest.mark.parametrize(
    ("words", "combinations"),
    [
        (["seed=1"], [["seed=1"]]),
        (["seed=0,1"], [["seed=0"], ["seed=1"]]),
        (["a=1,2", "b=x,y"], [["a=1", "b=x"], ["a=1", "b=y"], ["a=2", "b=x"], ["a=2", "b=y"]]),
        (["seed=range(0,3)"], [["seed=0"], ["seed=1"], ["seed=2"]]),
        (["model.widths=[8,16]", "+c.d=choice(1,2)"], [["model.widths=[8,16]", "+c.d=1"], ["model.widths=[8,16]", "+c.d=2"]]),
        (["~strategy", "'x y'=1"], None),
        (["~strategy", "data.root='a,b'"], [["~strategy", "data.root='a,b'"]]),
    ],
)
def test_combinations_are_those_of_hydra_s_sweeps(words, combinations):
    if combinations is None:
        with pytest.raises(ConfigError):
            expand(words)
    else:
        assert expand(words) == combinations


def test_a_sweep_without_values_to_list_is_refused():
    with pytest.raises(ConfigError, match="must list its values"):
        expand(["optimizer.lr=interval(0,1)"])


def test_runs_are_labeled_by_what_is_varied_and_equal_ones_stand_once(tmp_path):
    words = [*TINY, f"output={tmp_path}"]
    assert [run.label for run in plan_grid([*words, "strategy=fedavg,fedgen", "seed=3"])] == ["strategy=fedavg", "strategy=fedgen"]
    assert [run.label for run in plan_grid([*words, "strategy=fedavg"])] == ["strategy=fedavg seed=0"]
    assert len(plan_grid([*words, "strategy=fedavg", "engine=local,ray", "seed=0,0,1"])) == 2, "the engine changes no result"


def test_several_runs_at_a_time_of_which_one_fails(tmp_path):
    """The others are done, the failure is in one line, the exit code is 1; the same command makes what is missing and nothing else."""
    words = ["sweep", "--jobs", "2", *TINY, "strategy=fedavg", "optimizer.lr=0.1,1e30", "seed=0,1", f"output={tmp_path}"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1, result.stderr
    folders = [line.removeprefix("run: ") for line in result.stdout.splitlines()]
    assert len(folders) == 2 and {row["path"] for row in list_folder(tmp_path, status="finished")} == set(folders)
    failed = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2 and all("no longer finite" in line and "(log: " in line for line in failed)
    assert "optimizer.lr=0.1 seed=1: done in" in result.stderr and "of 4, " in result.stderr and " left)" in result.stderr
    assert "2 of 4 runs finished in 0:" in result.stderr
    again = CliRunner().invoke(cli, [word.replace("0.1,1e30", "0.1") for word in words])
    skipped = [line.partition(":")[0] for line in again.stderr.splitlines() if line.endswith(": already finished, skipped")]
    assert skipped == ["seed=0", "seed=1"] and "runs finished in" not in again.stderr
    assert again.exit_code == 0 and again.stdout.splitlines() == result.stdout.splitlines() and "done in" not in again.stderr


def test_a_run_sends_the_steps_of_its_server(tmp_path, capsys, monkeypatch):
    """From the training loop to the line: what is done, of how much, and the time left."""
    monkeypatch.setattr(step_counter, "INTERVAL", 0.0)
    monkeypatch.setattr(progress, "SERVER_LINES", 0.0)
    words = [*TINY, "engine=local", "strategy=fedgen", "strategy.generator_steps=3", f"output={tmp_path}"]
    (planned,), (ours, theirs) = plan_grid(words), Pipe(duplex=False)
    run_federation(compose(words), make_progress=lambda config, first: RoundSender(theirs, config.rounds, first - 1))
    theirs.close()
    running = {ours: Process(planned, SimpleNamespace(join=lambda: None))}
    capsys.readouterr()
    with progress.ProgressTable() as board:
        while running:
            hear(ours, running, board)
    lines = [line for line in capsys.readouterr().err.splitlines() if "server step" in line]
    assert [re.findall(r"round (\S+), server step (\S+), 0:00:\d\d left in this round", line) for line in lines] == [
        [(f"{number}/2", f"{step}/3")] for number in (1, 2) for step in (1, 2)
    ]
