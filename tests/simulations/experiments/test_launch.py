"""Runs of sweeps, searches and experiments that a launcher makes. Hydra's basic launcher makes them in this process."""

import csv
from types import SimpleNamespace

import pytest
from hydra.core.plugins import Plugins

from fedkd.errors import ClientFailure, ConfigError
from simulations.experiments import launch as launching
from simulations.experiments import reproduce, tuning
from simulations.experiments.grid import run_grid
from simulations.federation import runner

BASIC = "hydra/launcher=basic"
TINY = (
    "data=digits", "model=mlp", "strategy=fedavg", "num_clients=4", "clients_per_round=2", "local_steps=2", "batch_size=16", "rounds=1",
    "clients_per_vmap=1", "engine=local", "partition.alpha=1.0", "partition.min_size=2",
)  # fmt: skip


def test_a_sweep_through_a_launcher_reads_what_became_of_each_run_from_its_folder(tmp_path):
    words = [*TINY, "optimizer.lr=0.1,1e30", "seed=0,1", f"output={tmp_path}", BASIC]
    folders, failed = run_grid(words)
    assert [folder.parent for folder in folders] == [tmp_path / "digits"] * 2
    assert list(failed) == ["optimizer.lr=1e+30 seed=0", "optimizer.lr=1e+30 seed=1"]
    assert all("no longer finite" in why for why in failed.values())


def test_a_search_through_a_launcher_is_that_of_this_process(tmp_path, monkeypatch):
    here, launched = tmp_path / "here", tmp_path / "launched"
    tuning.tune([*TINY, f"output={here}"], grid=[0.1, 1e30])
    made = []
    monkeypatch.setattr(launching, "run_federation", lambda config: made.append(config.optimizer.lr) or runner.run_federation(config))
    tuning.tune([*TINY, f"output={launched}", BASIC], grid=[0.1, 1e30])
    assert made == [0.1, 1e30]
    rows = [list(csv.DictReader(open(folder / "digits" / "tuned.csv"))) for folder in (here, launched)]
    assert [[{**row, "seconds": ""} for row in some] for some in rows][0] == [{**row, "seconds": ""} for row in rows[1]]


def test_a_trial_that_fails_otherwise_ends_the_search_and_is_not_repeated_here(tmp_path, monkeypatch):
    def fail(config):
        raise OSError(f"no disk for {config.optimizer.lr}")

    monkeypatch.setattr(launching, "run_federation", fail)
    with pytest.raises(
        ClientFailure, match="2 of 2 trials failed: tuning, trial 1, seed 0: no disk for 0.1; tuning, trial 2, seed 0: no disk for 0.2"
    ):
        tuning.tune([*TINY, f"output={tmp_path}", BASIC], grid=[0.1, 0.2])
    assert not list(tmp_path.rglob("metrics.csv"))


def test_a_launcher_that_fails_is_the_reason_of_what_is_not_finished(tmp_path, monkeypatch):
    words = [*TINY, "seed=0,1", f"output={tmp_path}"]
    run_grid([*TINY, "seed=0", f"output={tmp_path}", BASIC])
    broken = SimpleNamespace(launch=lambda *_, **__: [][0])
    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: broken)
    folders, failed = run_grid([*words, BASIC])
    assert len(folders) == 1 and failed == {"seed=1": "the launcher failed: list index out of range"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run_grid([*TINY, BASIC], jobs=2), "jobs must not be given with hydra/launcher=basic"),
        (lambda: run_grid([*TINY, "hydra/launcher=slurm"]), "hydra/launcher must be an option of an installed plugin"),
        (lambda: run_grid([*TINY, BASIC, "hydra.launcher.n_jobs=2"]), "hydra.launcher.n_jobs must be a key"),
        (lambda: reproduce.plan_reproduction("fedgen_table3", [BASIC]), "hydra/launcher must not be given for an experiment that compares"),
        (lambda: reproduce.plan_reproduction("fedgen_table1_mnist", [BASIC], jobs=2), "jobs must not be given with"),
    ],
    ids=["jobs", "no plugin", "no key", "serial", "jobs of an experiment"],
)
def test_a_wrong_launcher_is_one_line(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_an_experiment_s_runs_and_searches_go_to_the_launcher(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(reproduce, "launch", lambda runs, words: given.append((len(runs), words)) or {})
    monkeypatch.setattr(reproduce, "sweep", None)
    asked = reproduce.plan_reproduction(
        "fedgen_table1_mnist",
        ["data=digits", f"output={tmp_path}", BASIC],
        seeds=[0],
        strategies=["FedAvg", "FedGen"],
        settings=["alpha 1"],
    )
    assert BASIC not in asked.experiment.note, "a launcher changes no result"
    assert reproduce.reproduce(asked) == 1 and given == [(2, [BASIC])]
