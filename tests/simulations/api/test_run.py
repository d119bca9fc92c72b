"""Runs, distillations and sweeps from Python: the folders of the command, skipped or resumed, with errors of one line."""

import logging
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch

import __main__
import fedkd
import simulations.run
from simulations.setup.simulation import build_simulation
from tests.processes import ROOT, differing
from tests.simulations.api.conftest import SMALL, STUDENT, WORDS


@dataclass(kw_only=True)
class Doubled(fedkd.Strategy):
    """Twice the cross-entropy, if ``factor`` is 2."""

    factor: float

    def loss(self, model, batch, broadcast, client_state):
        value, metrics = super().loss(model, batch, broadcast, client_state)
        return self.factor * value, metrics


def test_the_folder_and_its_files_are_those_of_the_command(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    simulations.run.main([*WORDS, "strategy=fedavg", "seed=1"])
    folder = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("run: "))
    assert folder.relative_to(tmp_path / "outputs") == runs[1].path.relative_to(runs[1].path.parents[1])
    assert list(differing(folder, runs[1].path)) == ["config.yaml"], "they differ in the key output"


def test_combinations_come_in_order_and_each_once(runs):
    assert [(run.name, run.seed) for run in runs] == [("fedavg", 0), ("fedavg", 1), ("fedgen", 0), ("fedgen", 1)]
    assert all(run.finished and run.kind == "federated" for run in runs)
    assert len({run.path for run in runs}) == 4


def test_a_finished_run_is_skipped(runs, output, capsys):
    before = (runs[0].path / "metrics.csv").stat().st_mtime_ns
    again = fedkd.run("seed=0,0", strategy="fedavg", output=str(output), **SMALL)
    assert [run.path for run in again] == [runs[0].path] and (runs[0].path / "metrics.csv").stat().st_mtime_ns == before
    assert "already finished, skipped" in capsys.readouterr().err


SCRIPT = """
print("begin")
import fedkd

keys = {keys}
for run in fedkd.run(strategy="fedavg", seed=[0, 1], jobs=2, **keys):
    print(run.path)
for run in fedkd.distill("resnet8", seed=[0, 1], jobs=2, distiller="kd", **{student}):
    print(run.seed, run.finished)
try:
    fedkd.run(strategy="fedavg", optimizer__lr=[0.05, 1e30], jobs=2, **keys)
except fedkd.ClientFailure as error:
    print(error)
"""


def test_several_at_a_time_give_the_same_runs(runs, tmp_path):
    """From a script without a guard around its calls, which processes do not run again."""
    output = {"output": str(tmp_path / "runs")}
    (tmp_path / "script.py").write_text(SCRIPT.format(keys={**SMALL, **output}, student={**STUDENT, **output}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    begin, *folders, first, second, failed = done.stdout.splitlines()
    assert begin == "begin" and [Path(folder).name for folder in folders] == [run.path.name for run in runs[:2]]
    for folder, run in zip(folders, runs):
        assert list(differing(Path(folder), run.path)) == ["config.yaml"]
    assert (first, second) == ("0 True", "1 True")
    assert re.match(r"1 of 2 runs failed \(log: .*\): optimizer.lr=1e.30: .*no longer finite", failed), failed


def test_a_run_that_fails_takes_no_other_with_it_and_is_named_at_the_end(runs, tmp_path, capsys):
    begun: list[float] = []

    class Note(fedkd.Callback):
        def on_run_begin(self, run):
            begun.append(run.config.optimizer.lr)

    keys = {**SMALL, "strategy": "fedavg", "output": str(tmp_path), "callbacks": [Note()]}
    with pytest.raises(fedkd.ClientFailure, match=r"^1 of 2 runs failed: optimizer.lr=1e.30: .*no longer finite") as several:
        fedkd.run(optimizer__lr=[1e30, 0.05], **keys)
    assert isinstance(several.value.__cause__, fedkd.DivergedError) and begun == [1e30, 0.05]
    assert [run.finished for run in fedkd.load(tmp_path).filter(optimizer__lr=0.05)] == [True]
    assert "error: optimizer.lr=1e+30: " in capsys.readouterr().err
    with pytest.raises(fedkd.DivergedError):
        fedkd.run(optimizer__lr=1e30, **keys)


def test_actors_of_ray_give_the_same_run(runs, tmp_path):
    rounds: list[int] = []

    class Note(fedkd.Callback):
        def on_round(self, run, round, metrics, clients):
            rounds.append(round)

    (found,) = fedkd.run(strategy="fedavg", callbacks=[Note()], output=str(tmp_path), **{**SMALL, "engine": "ray"}, engine__workers=1)
    assert list(differing(found.path, runs[0].path)) == ["config.yaml"] and rounds == [1, 2, 3]


# ---------------------------------------------------------------------------------------------------------- strategies
def test_a_class_is_a_strategy_under_its_name(runs, tmp_path):
    (same,) = fedkd.run(strategy=Doubled, strategy__factor=1.0, output=str(tmp_path), **SMALL)
    (other,) = fedkd.run(strategy=Doubled, strategy__factor=2.0, output=str(tmp_path), **SMALL)
    assert same.name == "doubled" and same.config.strategy._target_ == f"{__name__}.Doubled"
    assert same.metrics["global_test_accuracy"].equals(runs[0].metrics["global_test_accuracy"]), "with factor 1 it is FedAvg"
    assert not other.metrics["train_loss"].equals(same.metrics["train_loss"])
    with pytest.raises(fedkd.ConfigError, match="strategy.facto must be a parameter of Doubled"):
        fedkd.run(strategy=Doubled, strategy__facto=1.0, output=str(tmp_path), **SMALL)


def test_a_class_of_a_notebook_runs_in_this_process_only(tmp_path, monkeypatch):
    mine = dataclass(kw_only=True)(type("Mine", (Doubled,), {"__module__": "__main__", "__qualname__": "Mine"}))
    monkeypatch.setattr(__main__, "Mine", mine, raising=False)
    (run,) = fedkd.run(strategy=mine, strategy__factor=2.0, output=str(tmp_path), **{**SMALL, "rounds": 1})
    assert run.name == "mine" and run.model() is not None
    with pytest.raises(fedkd.ConfigError, match=r"code must be that of the run .* __main__.Mine \(whose source cannot be read\)"):
        fedkd.run(strategy=mine, strategy__factor=2.0, output=str(tmp_path), **{**SMALL, "rounds": 1})
    with pytest.raises(
        fedkd.ConfigError, match="engine must be local for a strategy of __main__, got ray: no other process can import __main__.Mine"
    ):
        fedkd.run(strategy=mine, strategy__factor=2.0, output=str(tmp_path), **{**SMALL, "engine": "ray"})
    with pytest.raises(fedkd.ConfigError, match="jobs must be 1 for a strategy of __main__"):
        fedkd.run(strategy=mine, strategy__factor=2.0, jobs=2, output=str(tmp_path), **SMALL)
    monkeypatch.delattr(__main__, "Mine")
    build_simulation.cache_clear()  # as in another process
    with pytest.raises(fedkd.RunFolderError, match="must be one that can be built here: strategy._target_ must be importable"):
        run.model()


# --------------------------------------------------------------------------------------------------------- distillation
def test_a_student_of_a_run(runs, student, output):
    assert student.kind == "distillation" and student.finished and student.config.teacher_run == str(runs[0].path)
    for teacher in (runs[0].path, str(runs[0].path)):
        assert [run.path for run in fedkd.distill(teacher, "distiller=kd", output=str(output), **STUDENT)] == [student.path]
    summary = student.summary()
    assert summary["test_accuracy_final"] == student.metrics["test_accuracy"].iloc[-1]
    assert summary["teacher_accuracy"] == pytest.approx(runs[0].summary()["global_test_accuracy_final"], abs=1e-9)


def test_what_is_no_teacher_is_refused(runs):
    with pytest.raises(fedkd.ConfigError, match="teacher must be a run folder or the name of a model, got 'resnet9'; did you mean 'resnet"):
        fedkd.distill("resnet9")
    with pytest.raises(fedkd.ConfigError, match="teacher must be a run, its folder, or the name of a model, got Runs"):
        fedkd.distill(runs)  # type: ignore[arg-type]
    assert fedkd.compose("student=resnet14", config="distill").choices.student == "resnet14"


# ------------------------------------------------------------------------------------------------------------ the others
def test_tune_returns_its_table(tmp_path):
    found = fedkd.tune(strategy=["fedavg", "fedprox"], grid=[0.01, 0.1], output=str(tmp_path), **SMALL)
    assert found["option"].tolist() == ["fedavg", "fedavg", "fedprox", "fedprox"] and found["value"].tolist() == [0.01, 0.1] * 2
    assert found.groupby("option")["selected"].sum().tolist() == [1, 1] and found["validation_accuracy"].between(0, 1).all()
    best = found.loc[found[found["option"] == "fedavg"]["validation_accuracy"].idxmax()]
    assert best["selected"] == 1
    again = fedkd.tune("strategy=fedavg", grid=[0.01, 0.1], output=str(tmp_path), **SMALL)
    assert again["validation_accuracy"].tolist() == found["validation_accuracy"].tolist()[:2]
    (tuned,) = fedkd.run(strategy="fedavg", tuned_params=found.attrs["table"], output=str(tmp_path), **SMALL)
    assert tuned.config.optimizer.lr == best["value"]


def test_reproduce_returns_the_table_of_what_is_there(tmp_path):
    with pytest.warns(UserWarning, match="2 of 2 runs of fedgen_table1_mnist are not finished"):
        found = fedkd.reproduce(
            "fedgen_table1_mnist",
            seeds=[0],
            settings=["alpha 0.1"],
            strategies=["FedAvg", "FedGen"],
            run_missing=False,
            output=str(tmp_path),
        )
    assert found["strategy"].tolist() == ["FedAvg", "FedGen"] and found["num_seeds"].tolist() == [0, 0]
    assert Path(found.attrs["table"]).is_file()
    with pytest.raises(fedkd.ConfigError, match="did you mean 'fedgen_table1_mnist'"):
        fedkd.reproduce("fedgen_table1_mnis", run_missing=False)


def test_compose_is_checked_resolved_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = fedkd.compose("strategy=fedprox", partition__alpha=0.3, name="mine")
    assert config.partition.alpha == 0.3 and config.choices.strategy == "fedprox" and config.name == "mine"
    assert fedkd.compose().name == "digits", "resolved"
    assert not list(tmp_path.iterdir())
    with pytest.raises(fedkd.ConfigError, match="partition.alph must be a key of the configuration.*did you mean 'partition.alpha'"):
        fedkd.compose(partition__alph=0.3)
    with pytest.raises(fedkd.ConfigError, match="strategy must be an option of conf/strategy, got 'fedgn'; did you mean 'fedgen'"):
        fedkd.compose(strategy="fedgn")
    with pytest.raises(fedkd.ConfigError, match=r"rounds must be >= 1, got 0"):
        fedkd.compose(rounds=0)
    with pytest.raises(fedkd.ConfigError, match=r"seed must be one value here"):
        fedkd.compose(seed=[0, 1])
    with pytest.raises(fedkd.ConfigError, match="config must be config or distill, got 'run'"):
        fedkd.compose(config="run")  # type: ignore[arg-type]


def test_describe_and_list_runs_are_data_frames(runs, output):
    assert {"strategy", "model", "partition"} <= set(fedkd.describe()["group"])
    assert "fedgen" in set(fedkd.describe("strategy")["option"])
    assert "generator_steps" in set(fedkd.describe("strategy", "fedgen")["key"])
    found = fedkd.list_runs(output, status="finished")
    assert {run.path.name for run in runs} <= set(found["hash"]) and (found["status"] == "finished").all()
    empty = fedkd.list_runs(output, status="interrupted")
    assert isinstance(empty, pd.DataFrame) and list(empty.columns) == list(found.columns)
    with pytest.raises(fedkd.ConfigError, match="status must be one of finished, interrupted, running, diverged, or None, got 'done'"):
        fedkd.list_runs(output, status="done")


# ------------------------------------------------------------------------------------------------- the caller's process
def test_the_caller_s_process_is_as_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handler = logging.NullHandler()
    logger = logging.getLogger("fedkd")
    flower = logging.getLogger("flwr")

    def state() -> tuple:
        handlers = list(logging.getLogger().handlers), list(logger.handlers), list(flower.handlers)
        return (
            signal.getsignal(signal.SIGINT),
            signal.getsignal(signal.SIGTERM),
            handlers,
            logger.level,
            logger.propagate,
            flower.level,
            flower.propagate,
        )

    threads = torch.get_num_threads()
    logger.addHandler(handler)
    monkeypatch.setattr(flower, "propagate", True)
    before = state()
    try:
        torch.set_num_threads(2)
        fedkd.run(strategy="fedavg", **{**SMALL, "rounds": 1})
        assert torch.get_num_threads() == 2 and state() == before
        with pytest.raises(fedkd.ConfigError):
            fedkd.run(strategy="fedavg", rounds=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
        logger.removeHandler(handler)


def test_the_number_of_threads_changes_nothing(runs, tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (found,) = fedkd.run(strategy="fedavg", output=str(tmp_path), **SMALL)
    finally:
        torch.set_num_threads(threads)
    assert list(differing(found.path, runs[0].path)) == ["config.yaml"]


def test_requests_that_cannot_be_met_are_refused(tmp_path):
    with pytest.raises(fedkd.ConfigError, match="callbacks must be empty with jobs > 1"):
        fedkd.run(callbacks=[fedkd.Callback()], jobs=2)
    with pytest.raises(fedkd.ConfigError, match="callbacks must be a sequence, got one callback"):
        fedkd.run(callbacks=fedkd.Callback())  # type: ignore[arg-type]
    with pytest.raises(fedkd.ConfigError, match="callbacks must be objects of subclasses of fedkd.Callback, got 'x'"):
        fedkd.run(callbacks=["x"])  # type: ignore[list-item]
    with pytest.raises(fedkd.ConfigError, match="jobs must be >= 1, got 0"):
        fedkd.run(jobs=0)
    with pytest.raises(fedkd.ConfigError, match="seed must be one value"):
        fedkd.tune(seed=[0, 1])
    with pytest.raises(fedkd.ConfigError, match="a word must be KEY=VALUE"):
        fedkd.run("strategy")
