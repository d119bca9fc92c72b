"""A sweep (-m) goes on past runs that fail or diverge, and ends with a list of what failed and why."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from fedkd.errors import ConfigError, DivergedError
from simulations.cli.exit_codes import FAILED, OK, WRONG
from simulations.cli.hydra_command import HydraTask
from simulations.cli.sweep_jobs import JobResult, conclude
from tests.processes import assert_refused, quick

SMALL = [
    "data=digits", "model=mlp", "strategy=fedavg", "partition=iid", "rounds=2", "num_clients=4", "clients_per_round=2", "local_steps=2",
    "clients_per_vmap=1", "engine=local", "progress=false", "output=runs",
]  # fmt: skip


def failing(monkeypatch, error, *, sweeper="Basic", launcher="Basic", mode=RunMode.MULTIRUN, objective="local_test_accuracy_last10"):
    """Call the task of the command as Hydra does, with a run that raises ``error``."""

    def fail(*_):
        raise error

    hydra_config = SimpleNamespace(
        mode=mode, launcher=SimpleNamespace(_target_=f"x.{launcher}Launcher"), sweeper=SimpleNamespace(_target_=f"x.{sweeper}Sweeper")
    )
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra_config)
    monkeypatch.setattr(HydraTask, "_run", fail)
    return HydraTask("config", full_error=False)(OmegaConf.create({"objective": objective, "progress": True}))


def test_a_run_that_diverges_does_not_end_the_sweep(tmp_path):
    for attempt in (1, 2):
        ended = quick(tmp_path, "-m", *SMALL, "optimizer.lr=0.05,1e30,0.1")
        assert ended.code == FAILED and ended.out.count("run: ") == 2, (attempt, ended.err)
        *_, number, failed = ended.err.splitlines()
        assert number == "1 of 3 runs failed:" and failed.startswith("failed: optimizer.lr=1e+30: ") and "diverged" in failed
        assert ("already finished" in ended.err) == (attempt == 2) and ("not repeated" in ended.err) == (attempt == 2)
        assert not list(tmp_path.glob("runs/.sweep/jobs_*")), "the records of the jobs are removed"


@pytest.mark.parametrize(("codes", "code"), [([WRONG, OK], WRONG), ([WRONG, FAILED, OK], FAILED)])
def test_every_failure_is_listed_and_gives_the_exit_code(codes, code, capsys):
    texts = {OK: "", WRONG: "x must be 1", FAILED: "lost"}
    with pytest.raises(SystemExit) as end:
        conclude([{**asdict(JobResult(code=one, text=texts[one])), "label": f"seed={seed}"} for seed, one in enumerate(codes)])
    expected = [f"{len(codes) - 1} of {len(codes)} runs failed:"]
    expected += [f"failed: seed={seed}: {texts[one]}" for seed, one in enumerate(codes) if one != OK]
    assert end.value.code == code and capsys.readouterr().err.splitlines() == expected
    conclude([{**asdict(JobResult()), "label": "seed=0"}])


@pytest.mark.parametrize(
    ("error", "objective", "result"),
    [
        (ConfigError("x must be 1"), "local_test_accuracy_last10", JobResult(None, WRONG, "x must be 1")),
        (KeyError("y"), "local_test_accuracy_last10", JobResult(None, FAILED, "the run ended by KeyError: 'y'")),
        (DivergedError("z"), "local_test_accuracy_last10", JobResult(0.0, FAILED, "z")),
        (DivergedError("z"), "train_loss_final", JobResult(float("inf"), FAILED, "z")),
        (DivergedError("z"), None, JobResult(None, FAILED, "z")),
    ],
    ids=["wrong", "failed", "diverged", "diverged loss", "no objective"],
)
def test_a_failed_run_of_a_sweep_is_a_result_and_a_diverged_one_has_the_worst_objective(monkeypatch, error, objective, result):
    found = failing(monkeypatch, error, objective=objective)
    text, traceback, log = found.text.partition(" (traceback: ")
    assert replace(found, text=text) == result and bool(traceback) == isinstance(error, KeyError)
    assert not log or "KeyError" in Path(log.rstrip(")")).read_text()


def test_outside_a_sweep_an_error_ends_the_command(monkeypatch):
    with pytest.raises(SystemExit) as end:
        failing(monkeypatch, ValueError("x"), mode=RunMode.RUN)
    assert end.value.code == WRONG
    with pytest.raises(SystemExit) as end:
        failing(monkeypatch, AssertionError, mode=RunMode.RUN, launcher="Joblib")
    assert end.value.code == WRONG, "a launcher is for multiruns"


def test_an_interrupt_ends_a_sweep(monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        failing(monkeypatch, KeyboardInterrupt())


def test_a_sweeper_that_reads_objectives_needs_one(monkeypatch):
    result = failing(monkeypatch, AssertionError, sweeper="Optuna", objective=None)
    assert result.code == WRONG and result.text == "objective must be a metric where the sweeper reads it, got None"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["objective=local_test_accuracy"], ["objective must be null, or a column", "'local_test_accuracy_final'"]),
        (["objective=best5_rounds"], ["objective must be null, or a column"]),
        (["-m", "hydra/launcher=slurm"], ["hydra/launcher must be an option of an installed plugin", "fedkd[launchers]"]),
    ],
    ids=["no end", "best rounds", "no plugin"],
)
def test_a_wrong_word_of_a_sweep_is_one_line(tmp_path, words, parts):
    assert_refused(quick(tmp_path, *SMALL, *words), tmp_path / "runs", *parts)
