"""Callbacks: when they are called, that they change nothing, and those that are shipped."""

import json
import warnings

import numpy as np
import pytest
import torch

import fedkd
from tests.processes import differing
from tests.simulations.api.conftest import SMALL, STUDENT


class Note(fedkd.Callback):
    """Writes down what is called, and does what it can to change the run."""

    def __init__(self):
        self.said = []

    def on_run_begin(self, run):
        self.said.append(("begin", run.seed, len(run.metrics)))

    def on_round(self, run, round, metrics, clients):
        rows = run.metrics
        assert rows["round"].iloc[-1] == round, "the row is on disk"
        assert rows["global_test_accuracy"].iloc[-1] == metrics["global_test_accuracy"]
        assert [row["client_id"] for row in clients] == run.clients.query("round == @round")["client_id"].tolist()
        self.said.append(("round", run.seed, round))
        metrics.clear()
        clients.clear()
        run.config.rounds = 1
        torch.rand(3), np.random.rand(3)

    def on_run_end(self, run, error):
        self.said.append(("end", run.seed, run.finished, error))


def test_callbacks_are_told_everything_and_change_no_byte(runs, tmp_path):
    first, second = Note(), Note()
    found = fedkd.run(strategy="fedavg", seed=[0, 1], callbacks=[first, second], output=str(tmp_path), **SMALL)
    for mine, theirs in zip(found, runs):
        assert list(differing(mine.path, theirs.path)) == ["config.yaml"], "they differ in the key output"
    each = [[("begin", seed, 0), *(("round", seed, number) for number in (1, 2, 3)), ("end", seed, True, None)] for seed in (0, 1)]
    assert first.said == second.said == [*each[0], *each[1]]
    again = Note()
    fedkd.run(strategy="fedavg", callbacks=[again], output=str(tmp_path), **SMALL)
    assert again.said == [], "a finished run is skipped"


class Stop(fedkd.Callback):
    """Stops after a round."""

    def __init__(self, number):
        self.number, self.ended = number, None

    def on_round(self, run, round, metrics, clients):
        if round == self.number:
            raise fedkd.StopRun("enough")

    def on_run_end(self, run, error):
        self.ended = error


@pytest.mark.parametrize("every", [1, 10])
def test_a_stopped_run_has_a_checkpoint_and_continues_to_the_same_end(runs, tmp_path, every, capsys):
    keys = {**SMALL, "checkpoint_every": every, "output": str(tmp_path)}
    stop, note = Stop(2), Note()
    (stopped,) = fedkd.run(strategy="fedavg", callbacks=[stop, note], **keys)
    assert not stopped.finished and stopped.round == 2 and len(stopped.metrics) == 2 and str(stop.ended) == "enough"
    assert note.said[-2:] == [("round", 0, 2), ("end", 0, False, stop.ended)], "the other callback is told of the round too"
    assert "stopped: enough" in capsys.readouterr().err
    assert stopped.model()(torch.zeros(1, 1, 8, 8)).logits.shape == (1, 10)
    assert fedkd.list_runs(tmp_path)["status"].tolist() == ["interrupted"]
    note = Note()
    (whole,) = fedkd.run(strategy="fedavg", callbacks=[note], **keys)
    assert whole.path == stopped.path and note.said == [("begin", 0, 2), ("round", 0, 3), ("end", 0, True, None)]
    assert list(differing(whole.path, runs[0].path)) == ["config.yaml"]


def test_a_stop_in_the_last_round_ends_a_finished_run(tmp_path):
    stop = Stop(3)
    (run,) = fedkd.run(strategy="fedavg", callbacks=[stop], output=str(tmp_path), **SMALL)
    assert run.finished and stop.ended is None


def test_one_run_of_a_sweep_is_stopped_alone(tmp_path):
    class First(fedkd.Callback):
        def on_run_begin(self, run):
            if run.seed == 0:
                raise fedkd.StopRun

    first, second = fedkd.run(strategy="fedavg", seed=[0, 1], callbacks=[First()], output=str(tmp_path), **{**SMALL, "rounds": 1})
    assert not first.finished and first.metrics.empty and second.finished
    with pytest.raises(fedkd.RunFolderError, match="must hold checkpoint.safetensors, and does not; run it for one round at least"):
        first.model()


def test_an_exception_of_a_callback_ends_the_run_as_it_is(runs, tmp_path):
    class Broken(fedkd.Callback):
        def on_round(self, run, round, metrics, clients):
            if round == 2:
                raise ZeroDivisionError("mine")

    note = Note()
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        fedkd.run(strategy="fedavg", callbacks=[note, Broken()], output=str(tmp_path), **SMALL)
    assert any("raised by Broken.on_round of round 2" in line for line in caught.value.__notes__)
    assert note.said[-1] == ("end", 0, False, caught.value)
    (run,) = fedkd.run(strategy="fedavg", output=str(tmp_path), **SMALL)
    assert list(differing(run.path, runs[0].path)) == ["config.yaml"]


def test_ctrl_c_closes_the_callbacks(tmp_path):
    class Interrupt(Note):
        def on_round(self, run, round, metrics, clients):
            raise KeyboardInterrupt

    note = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        fedkd.run(strategy="fedavg", callbacks=[note], output=str(tmp_path), **SMALL)
    assert isinstance(note.said[-1][3], fedkd.StopRun) and str(note.said[-1][3]) == "interrupted"


def test_flower_s_own_strategies_are_followed_and_cannot_be_stopped(tmp_path):
    from flwr.serverapp.strategy import FedAdam

    class Draw(fedkd.Callback):
        def on_round(self, run, round, metrics, clients):
            np.random.rand(7), torch.rand(7)

    keys = {"strategy": FedAdam, "strategy__fraction_evaluate": 0.0, "strategy__fraction_train": 0.5, **SMALL}
    (plain,) = fedkd.run(output=str(tmp_path / "plain"), **keys)
    (drawn,) = fedkd.run(output=str(tmp_path / "drawn"), callbacks=[Draw(), fedkd.BestCheckpoint("train_loss", "min")], **keys)
    assert plain.metrics["global_test_accuracy"].tolist() == drawn.metrics["global_test_accuracy"].tolist()
    with pytest.raises(fedkd.ConfigError, match="callbacks must not stop a run of Flower's own strategies"):
        fedkd.run(output=str(tmp_path / "stopped"), callbacks=[Stop(1)], **keys)


def test_epochs_of_a_distillation_are_followed(student, runs, tmp_path):
    said: list[tuple] = []

    class Follow(fedkd.Callback):
        def on_round(self, run, round, metrics, clients):
            said.append((run.kind, round, metrics["test_accuracy"], clients))

    keys = {"distiller": "kd", "output": str(tmp_path), **STUDENT}
    (stopped,) = fedkd.distill(runs[0], callbacks=[Follow(), Stop(1)], **keys)
    assert not stopped.finished and stopped.round == 1
    (whole,) = fedkd.distill(runs[0], callbacks=[Follow()], **keys)
    expected = student.metrics["test_accuracy"].tolist()
    assert said == [("distillation", 1, expected[1], []), ("distillation", 2, expected[2], [])]
    assert set(differing(whole.path, student.path)) <= {"config.yaml", "metrics.csv", "models.csv"}
    assert whole.metrics["test_accuracy"].tolist() == expected and whole.path.name == student.path.name


# ------------------------------------------------------------------------------------------------------- early stopping


@pytest.mark.filterwarnings("ignore:EarlyStopping selects", "ignore:BestCheckpoint selects")
def test_early_stopping_counts_rounds_without_improvement(runs, tmp_path):
    """With the mode turned round, the run of known accuracies is stopped where these say so."""
    known = runs[1].metrics["local_test_accuracy"].tolist()
    best, waited, expected = known[0], 0, 3
    for number, value in enumerate(known[1:], 2):
        waited = 0 if value < best else waited + 1
        best = min(best, value)
        if waited == 1 and expected == 3:
            expected = number
    keys = {"strategy": "fedavg", "seed": 1, "output": str(tmp_path), **SMALL}
    stopping = fedkd.EarlyStopping(patience=1, mode="min")
    (run,) = fedkd.run(callbacks=[stopping], **keys)
    assert expected == 2 and run.round == expected and not run.finished
    note = Note()
    (again,) = fedkd.run(callbacks=[stopping, note], **keys)
    assert again.round == expected and [kind for kind, *_ in note.said] == ["begin", "end"], "the same call computes nothing more"
    (more,) = fedkd.run(callbacks=[fedkd.EarlyStopping(patience=10)], **keys)
    assert more.finished


@pytest.mark.filterwarnings("ignore:EarlyStopping selects")
def test_an_improvement_must_be_as_large_as_asked(tmp_path):
    (run,) = fedkd.run(strategy="fedavg", callbacks=[fedkd.EarlyStopping(patience=1, min_delta=1.0)], output=str(tmp_path), **SMALL)
    assert run.round == 2


def test_selection_on_the_test_set_is_said_in_a_line(tmp_path):
    keys = {"strategy": "fedavg", "output": str(tmp_path), **SMALL, "rounds": 1}
    for callback in (fedkd.EarlyStopping(), fedkd.BestCheckpoint("global_test_accuracy")):
        name = type(callback).__name__
        with pytest.warns(
            UserWarning, match=rf"^{name} selects a round on the test set \(\w+_test_accuracy\); .*evaluation.split=validation"
        ):
            fedkd.run(callbacks=[callback], seed=len(name), **keys)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fedkd.run(callbacks=[fedkd.EarlyStopping("train_loss", mode="min")], seed=3, **keys)
        fedkd.run(callbacks=[fedkd.EarlyStopping()], evaluation__split="validation", validation_fraction=0.2, **keys)


@pytest.mark.filterwarnings("ignore:EarlyStopping selects")
def test_wrong_arguments_and_metrics_are_refused(tmp_path):
    with pytest.raises(fedkd.ConfigError, match="patience must be >= 1 evaluated rounds, got 0"):
        fedkd.EarlyStopping(patience=0)
    with pytest.raises(fedkd.ConfigError, match="mode must be max or min, got 'maximum'"):
        fedkd.BestCheckpoint(mode="maximum")  # type: ignore[arg-type]
    with pytest.raises(fedkd.ConfigError, match="min_delta must be >= 0, got -1"):
        fedkd.EarlyStopping(min_delta=-1)
    with pytest.raises(fedkd.ConfigError, match="metric must be one of .*, got 'local_test_acuracy'; did you mean 'local_test_accuracy'"):
        fedkd.run(strategy="fedavg", callbacks=[fedkd.EarlyStopping("local_test_acuracy")], output=str(tmp_path), **SMALL)


# ------------------------------------------------------------------------------------------------------ best checkpoint
@pytest.mark.filterwarnings("ignore:BestCheckpoint selects")
@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_checkpoint_of_the_best_round_is_kept(runs, tmp_path, mode):
    (run,) = fedkd.run(
        strategy="fedavg",
        callbacks=[fedkd.BestCheckpoint("global_test_accuracy", mode)],
        output=str(tmp_path),
        **SMALL,
        checkpoint_every=10,
    )
    values = runs[0].metrics["global_test_accuracy"]
    best = int(values.idxmax() if mode == "max" else values.idxmin()) + 1
    kept = json.loads((run.path / "best_checkpoint.json").read_text())
    assert (kept["round"], kept["metric"], kept["mode"], kept["value"]) == (best, "global_test_accuracy", mode, values[best - 1])
    (other,) = fedkd.run(strategy="fedavg", callbacks=[Stop(best)], output=str(tmp_path / "stopped"), **SMALL)
    mine, theirs = run.model(which="best").state_dict(), other.model().state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    kept = ("best_checkpoint.json", "best_checkpoint.safetensors", "previous_checkpoint.safetensors")
    assert set(differing(run.path, runs[0].path)) == {*kept, "config.yaml"}
    with pytest.raises(
        fedkd.RunFolderError, match="must hold best_checkpoint.safetensors, and does not; run it with the callback BestCheckpoint"
    ):
        runs[0].model(which="best")
    with pytest.raises(fedkd.RunFolderError, match="which must be last or best, got 'first'"):
        runs[0].model(which="first")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:BestCheckpoint selects")
def test_a_resumed_run_keeps_the_best_round_of_all(tmp_path):
    keys = {"strategy": "fedavg", "seed": 1, **SMALL, "rounds": 4}
    (whole,) = fedkd.run(callbacks=[fedkd.BestCheckpoint()], output=str(tmp_path / "whole"), **keys)
    for number in (1, 2, 3):
        fedkd.run(callbacks=[fedkd.BestCheckpoint(), Stop(number)], output=str(tmp_path / "parts"), **keys)
    (parts,) = fedkd.run(callbacks=[fedkd.BestCheckpoint()], output=str(tmp_path / "parts"), **keys)
    assert list(differing(parts.path, whole.path)) == ["config.yaml"]
