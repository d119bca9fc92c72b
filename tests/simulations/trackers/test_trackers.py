"""Trackers: each round once, also after an interruption; parameters and tags; a tracker that fails does not cost the run."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from omegaconf import OmegaConf

from fedkd.errors import ConfigError, StopRun
from simulations.config import compose
from simulations.trackers.base import TrackedRun, Tracker
from simulations.trackers.mlflow import MLflowTracker
from simulations.trackers.observer import RECORDS, TrackerObserver, make_trackers
from simulations.trackers.wandb import WandbTracker

CONFIG = {
    "name": "digits",
    "choices": {"strategy": "fedgen", "protocol@strategy": "paper"},
    "strategy": {"_target_": "strategies.fedgen.FedGen", "mu": 0.1},
}
HEADER = "round,train_loss,local_test_accuracy\n"


class Recorder(Tracker):
    """Notes all calls; raises in the method ``fails_in``."""

    def __init__(self, *, fails_in: str = "", replaces: bool = False) -> None:
        self.fails_in, self.replaces = fails_in, replaces
        self.calls: list[tuple] = []

    def note(self, method: str, *given: object) -> None:
        self.calls.append((method, *given))
        if method == self.fails_in:
            raise ConnectionError("no\nserver")

    def begin(self, run: TrackedRun) -> str:
        self.note("begin", run.id, run.first)
        return run.id or "id7"

    def log(self, number, metrics):
        self.note("log", number, metrics)

    def end(self, error):
        self.note("end", error)

    @property
    def rounds(self) -> list[int]:
        return [call[1] for call in self.calls if call[0] == "log"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run folder that holds its configuration."""
    path = tmp_path / "0123456789ab"
    path.mkdir()
    OmegaConf.save(OmegaConf.create(CONFIG), path / "config.yaml")
    (path / "metrics.csv").write_text(HEADER)
    return path


def run_rounds(folder: Path, tracker: Tracker, first: int, last: int, error: Exception | None = None) -> None:
    """Compute rounds as a run does: rows after the checkpoint are cut, each new row is on disk before the tracker is told of it."""
    observer, rows = TrackerObserver("mine", tracker), (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(rows[:first]))
    observer.begin(folder, first)
    for number in range(first, last + 1):
        with open(folder / "metrics.csv", "a") as file:
            file.write(f"{number},{number / 10},\n")
        observer.round(number, {"round": number, "train_loss": number / 10}, [], lambda name: None)
    observer.end(error)


def test_each_round_is_logged_once_also_where_a_resume_computes_it_again(folder):
    first, resumed = Recorder(), Recorder()
    run_rounds(folder, first, 1, 3, StopRun("x"))
    run_rounds(folder, resumed, 2, 5)
    assert first.rounds == [1, 2, 3] and resumed.rounds == [4, 5]
    assert first.calls[1] == ("log", 1, {"train_loss": 0.1}) and isinstance(first.calls[-1][1], StopRun)
    assert resumed.calls[0] == ("begin", "id7", 2) and resumed.calls[-1] == ("end", None)


def test_a_tracker_that_replaces_rounds_is_told_of_them_again_and_leaves_no_note(folder):
    run_rounds(folder, Recorder(replaces=True), 1, 3)
    resumed = Recorder(replaces=True)
    run_rounds(folder, resumed, 2, 4)
    assert resumed.rounds == [2, 3, 4] and not (folder / RECORDS).exists()


def test_a_tracker_that_is_chosen_later_is_told_of_earlier_rounds(folder):
    run_rounds(folder, Recorder(replaces=True), 1, 3)
    (folder / "generator.csv").write_text("round,class,coverage\n2,7,0.5\n2,8,\n")
    late = Recorder()
    run_rounds(folder, late, 4, 5)
    assert late.rounds == [1, 2, 3, 4, 5]
    assert late.calls[2] == ("log", 2, {"train_loss": 0.2, "generator/coverage/class_07": 0.5})


@pytest.mark.parametrize(("method", "calls"), [("begin", 1), ("log", 2), ("end", 5)])
def test_a_tracker_that_fails_is_one_line_and_is_not_called_again(folder, capsys, method, calls):
    broken = Recorder(fails_in=method)
    run_rounds(folder, broken, 1, 3)
    assert len(broken.calls) == calls
    assert capsys.readouterr().err == "tracker mine failed, and the run goes on without it: ConnectionError: no server\n"


# ------------------------------------------------------------------------------------------------------------- packages
def fake_package(monkeypatch, name: str, **content: object) -> None:
    """A module that stands for an installed package."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def mlflow_calls(monkeypatch) -> list[tuple]:
    """The calls of a fake MLflow."""
    calls: list[tuple] = []

    class Client:
        def __init__(self, tracking_uri):
            calls.append(("uri", tracking_uri))

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return f"experiment {name}"

        def create_run(self, experiment, run_name, tags):
            calls.append(("create", experiment, run_name, tags))
            return SimpleNamespace(info=SimpleNamespace(run_id="id7"))

        def __getattr__(self, method):
            return lambda *given, **named: calls.append((method, *given, *named.values()))

    fake_package(monkeypatch, "mlflow", MlflowClient=Client)
    fake_package(monkeypatch, "mlflow.entities", Param=lambda *given: given, Metric=lambda name, value, when, step: (name, value, step))
    return calls


def test_mlflow_has_parameters_tags_steps_and_goes_on_in_the_same_run(folder, mlflow_calls):
    run_rounds(folder, MLflowTracker(tracking_uri="sqlite:///x.db", experiment="digits"), 1, 1, StopRun("x"))
    tags = {"hash": folder.name, "name": "digits", "strategy": "fedgen"}
    assert mlflow_calls[:2] == [("uri", "sqlite:///x.db"), ("create", "experiment digits", f"fedgen {folder.name}", tags)]
    method, key, parameters = mlflow_calls[2]
    assert (method, key) == ("log_batch", "id7") and ("strategy.mu", "0.1") in parameters and ("name", "digits") in parameters
    assert ("choices.protocol_strategy", "paper") in parameters, "MLflow refuses other characters"
    assert mlflow_calls[3:] == [("log_batch", "id7", [("train_loss", 0.1, 1)]), ("set_terminated", "id7", "KILLED")]
    mlflow_calls.clear()
    run_rounds(folder, MLflowTracker(tracking_uri=None, experiment="digits"), 1, 2)
    assert mlflow_calls == [
        ("uri", None), ("update_run", "id7", "RUNNING"),
        ("log_batch", "id7", [("train_loss", 0.2, 2)]), ("set_terminated", "id7", "FINISHED"),
    ]  # fmt: skip


def test_wandb_has_configuration_tags_steps_and_goes_on_in_the_same_run(folder, monkeypatch):
    begun: list[dict] = []
    calls: list[tuple] = []
    session = SimpleNamespace(
        id="id7", log=lambda metrics, step: calls.append((metrics, step)), finish=lambda exit_code: calls.append(("finish", exit_code))
    )
    fake_package(monkeypatch, "wandb", init=lambda **given: begun.append(given) or session, Settings=dict)
    for first, last, error in ((1, 1, StopRun("x")), (1, 2, None)):
        run_rounds(folder, WandbTracker(project="p", entity=None, mode="offline"), first, last, error)
    assert calls == [({"train_loss": 0.1}, 1), ("finish", 1), ({"train_loss": 0.2}, 2), ("finish", 0)]
    assert [one["id"] for one in begun] == [None, "id7"] and [one["resume"] for one in begun] == [None, "allow"]
    assert begun[0]["config"] == CONFIG and begun[0]["tags"] == [folder.name, "digits", "fedgen"] and begun[0]["mode"] == "offline"
    assert json.loads((folder / RECORDS).read_text()) == {"mine": {"id": "id7", "round": 2}}


# --------------------------------------------------------------------------------------------------------- configuration
def test_several_trackers_are_chosen_at_once_and_one_of_your_own_by_its_class(monkeypatch):
    fake_package(monkeypatch, "mlflow")
    fake_package(monkeypatch, "wandb")
    own = f"+tracker.mine._target_={__name__}.Recorder"
    config = compose(["tracker=[mlflow,wandb]", "tracker.mlflow.tracking_uri=sqlite:///x.db", own])
    assert [one._name for one in make_trackers(config)] == ["mlflow", "wandb", "mine"]
    assert make_trackers(config)[0]._tracker.experiment == "digits", "the runs of one name are one experiment"
    assert make_trackers(compose([])) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tracker=mlflow"], r"tracker.mlflow.package must be installed \(pip install 'fedkd\[mlflow\]'\), got 'mlflow'"),
        (["tracker=wandb"], r"tracker.wandb.package must be installed .*fedkd\[wandb\]"),
        (["tracker=tensorboard"], r"tracker.tensorboard.package must be installed .*fedkd\[tensorboard\]"),
        (["+tracker.mine=3"], "tracker.mine must be a part with a _target_"),
        (["+tracker.mine._target_=fedkd.data.digits.Digits"], r"tracker.mine._target_ must be a subclass of fedkd.Tracker"),
        (["tracker=wandb", "+tracker.wandb.projet=x"], "tracker.wandb.projet must be a parameter of WandbTracker.*'project'"),
        (["tracker=wandb", "tracker.wandb.mode=off"], "tracker.wandb.mode must be 'offline' or 'online', got 'off'"),
    ],
    ids=["mlflow", "wandb", "tensorboard", "no part", "no tracker", "no parameter", "no mode"],
)
def test_a_wrong_tracker_is_one_line_before_any_work(monkeypatch, words, message):
    for package in ("mlflow", "wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=message):
        make_trackers(compose(words))
