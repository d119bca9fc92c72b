"""Trainings that are interrupted, killed, or that diverge, and the command's messages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simulations.distillation import runner
from simulations.distillation.folder import read_rows, read_trained_tensors
from simulations.distillation.runner import run_distillation
from simulations.progress import ProgressBar
from tests.processes import Command, until
from tests.simulations.distillation.small_distillations import SMALL, SMALL_METHODS, rows_without_times, small_distillation
from tests.small_runs import ROOT, same_tensors


def command(output: Path, *overrides: str, forked: bool = True) -> Command:
    """The command of a small distillation in a process of its own."""
    return Command((*SMALL, f"output={output}", *overrides), ROOT, module="simulations.distill", forked=forked)


@pytest.mark.parametrize("method", ["kd", "dpk", "hsakd", "online_ensemble"])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(method, output, tmp_path, monkeypatch):
    whole = run_distillation(small_distillation(method, output, "epochs=3"))
    advance = ProgressBar.advance

    def stop_after_epoch_2(self, row):
        advance(self, row)
        if row["epoch"] == 2 and "none" not in self._label and "teacher" not in self._label:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressBar, "advance", stop_after_epoch_2)
    with pytest.raises(KeyboardInterrupt):
        run_distillation(small_distillation(method, tmp_path, "epochs=3"))
    monkeypatch.setattr(ProgressBar, "advance", advance)
    resumed = run_distillation(small_distillation(method, tmp_path, "epochs=3"))
    assert resumed.name == whole.name
    assert same_tensors(read_trained_tensors(resumed), read_trained_tensors(whole))
    assert rows_without_times(resumed) == rows_without_times(whole)


def test_a_killed_process_is_resumed_to_the_same_checkpoint(tmp_path):
    words = ("distiller=dpk", *SMALL_METHODS["dpk"], "epochs=11", "steps_per_epoch=20")
    folder = command(tmp_path / "whole", *words).end().folder
    metrics = tmp_path / "killed" / "distilled" / folder.name / "metrics.csv"
    process = command(tmp_path / "killed", *words)
    until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 4, what="the third row")
    process.kill()
    process.end()
    assert 4 <= len(metrics.read_text().splitlines()) < 12, "the process was killed during the training"
    assert command(tmp_path / "killed", *words).end().folder.name == folder.name
    assert (metrics.parent / "checkpoint.safetensors").read_bytes() == (folder / "checkpoint.safetensors").read_bytes()
    assert rows_without_times(metrics.parent) == rows_without_times(folder)


def test_a_loss_that_is_not_finite_stops_the_training_and_the_last_checkpoint_remains(tmp_path, monkeypatch):
    config = small_distillation("kd", tmp_path, "epochs=3")
    original = runner.Training.epoch

    def infinite_teacher(self, progress):
        if progress.epoch == 1 and self.teacher is not None:
            head = {key: value * float("inf") for key, value in self.teacher_tensors.items() if key.endswith("head.weight")}
            assert head
            self.broadcast["teacher"] = {**self.teacher_tensors, **head}
        return original(self, progress)

    monkeypatch.setattr(runner.Training, "epoch", infinite_teacher)
    with pytest.raises(FloatingPointError, match=r"in step 1 of epoch 2, where kd is nan: lower the learning rate$"):
        run_distillation(config)
    folder = next(path for path in (tmp_path / "distilled").iterdir() if not json.loads((path / "checkpoint.json").read_text())["finished"])
    assert json.loads((folder / "checkpoint.json").read_text())["round"] == 1
    assert all(torch.isfinite(value).all() for value in read_trained_tensors(folder).values())


def test_a_last_step_that_makes_the_student_useless_is_not_saved(tmp_path, monkeypatch):
    config = small_distillation("none", tmp_path, "epochs=3")
    original = runner.Training.epoch

    def overshoot(self, progress):
        progress, terms = original(self, progress)
        if progress.epoch == 2:
            tensors = {k: v * float("inf") if k.endswith("head.weight") else v for k, v in progress.tensors.items()}
            progress = replace(progress, tensors=tensors)
        return progress, terms

    monkeypatch.setattr(runner.Training, "epoch", overshoot)
    with pytest.raises(FloatingPointError, match=r"after epoch 2, where 'learner:.*head.weight' holds NaN or infinity: lower"):
        run_distillation(config)
    (folder,) = (tmp_path / "distilled").iterdir()
    assert json.loads((folder / "checkpoint.json").read_text())["round"] == 1 == int(read_rows(folder)[-1]["epoch"])


def test_a_wrong_value_is_an_error_of_one_line_and_exit_code_2(tmp_path):
    ended = command(tmp_path, "distiller.weight=-1", forked=False).end()
    assert ended.code == 2 and ended.err == "error: distiller.weight must be >= 0 (0 switches the term off), got -1\n"


def test_a_learning_rate_that_is_too_large_is_an_error_with_epoch_and_term(tmp_path):
    ended = command(tmp_path, "distiller=none", "optimizer.lr=1e30").end()
    assert ended.code == 1
    first, second = ended.err.splitlines()
    assert first.startswith("error: resnet8 by none on real digits, seed 0: the loss is no longer finite in step ")
    assert first.endswith("where ce is nan: lower the learning rate")
    assert second.startswith("The same command would diverge again. The last sound checkpoint, if there is one, is in ")


def test_results_that_fail_keep_the_training_and_are_written_by_the_same_command(tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("the export fails")

    config = small_distillation("none", tmp_path, "epochs=1")
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="the export fails"):
        broken.setattr(runner, "export_networks", fail)
        run_distillation(config)
    (checkpoint,) = tmp_path.rglob("checkpoint.safetensors")
    trained = checkpoint.read_bytes()
    folder = run_distillation(small_distillation("none", tmp_path, "epochs=1"))
    assert checkpoint == folder / "checkpoint.safetensors" and checkpoint.read_bytes() == trained
    assert (folder / "models.csv").is_file() and (folder / "student.safetensors").is_file()
