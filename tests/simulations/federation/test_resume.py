"""A run that is killed and started again gives the files of an uninterrupted run, byte for byte."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from fedkd.checkpoint import read_checkpoint
from fedkd.errors import RunFolderError
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.run_folder.reader import read_run
from simulations.setup.simulation import build_simulation
from tests.processes import ROOT, TINY, Command, differing, metrics, quick, rows, until
from tests.simulations.federation.resume_tools import SHORT, check_refused, check_resumed
from tests.small_runs import TRAININGS, InterruptedGrid, strategy_overrides


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    return quick(tmp_path_factory.mktemp("uninterrupted"), *SHORT).folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """The current folder of a run that was killed between two rounds. While it was alive, a second run could not use its run folder."""
    where = tmp_path_factory.mktemp("killed")
    (where / "second").mkdir()
    command = Command(SHORT, where, forked=True)
    until(lambda: rows(where) >= 3, what="the third row")
    command.kill(signal.SIGSTOP)
    second = quick(where / "second", "engine=local", *TINY, "rounds=15", f"output={where / 'runs'}")
    command.kill()
    command.end()
    assert second.code == 2 and "in use" in second.err and second.err.startswith("error: output"), second.err
    assert 3 <= rows(where) < 15, "the run is not finished"
    return where


@pytest.fixture
def killed_copy(killed, tmp_path) -> Path:
    """A copy of the killed run's folder."""
    shutil.copytree(killed / "runs", tmp_path / "runs")
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    return folder


def append(folder: Path, name: str, text: str) -> None:
    with open(folder / name, "a") as file:
        file.write(text)


def next_row(folder: Path, name: str) -> str:
    """A copy of the last row with the number of the next round."""
    number, _, rest = (folder / name).read_text().splitlines()[-1].partition(",")
    return f"{int(number) + 1},{rest}\n"


def test_killed_between_two_rounds(killed_copy, uninterrupted):
    before = len(metrics(killed_copy))
    check_resumed(killed_copy, uninterrupted)
    assert before < len(metrics(killed_copy)) == 15


@pytest.mark.parametrize("strategy", TRAININGS)
def test_every_strategy_continues_from_its_checkpoint(tmp_path, strategy):
    """The states of server and clients are restored: consensus, generator, optimizer moments, control variates, tables."""
    given = [*(word for word in TINY if not word.startswith("strategy.")), f"strategy={strategy}", *strategy_overrides(strategy)]
    given += ["engine=local", "rounds=3", "clients_per_round=3", *(["validation_fraction=0.2"] if strategy == "feddf" else [])]
    uninterrupted = run_federation(compose([*given, f"output={tmp_path / 'uninterrupted'}"]))
    interrupted = compose([*given, f"output={tmp_path / 'interrupted'}"])
    with pytest.raises(KeyboardInterrupt):
        run_federation(interrupted, InterruptedGrid)
    assert rows(tmp_path / "interrupted") == 1, "the second round's row is written after its evaluation, during the third round"
    build_simulation.cache_clear()
    resumed = run_federation(compose([*given, f"output={tmp_path / 'interrupted'}"]))
    assert len(metrics(uninterrupted)) == 3
    assert list(differing(uninterrupted, resumed)) == ["config.yaml"], "config.yaml names the output folder"


def test_killed_in_the_second_task_of_a_drift(tmp_path):
    tasks = ("engine=local", *TINY, "rounds=9", "drift=class_incremental", "drift.num_tasks=3")
    command = Command((*tasks, "output=runs"), tmp_path, forked=True)
    until(lambda: rows(tmp_path) >= 4, what="a row of the second task")
    command.kill()
    command.end()
    assert rows(tmp_path) < 9
    whole = run_federation(compose([*tasks, f"output={tmp_path / 'whole'}"]))
    assert list(differing(quick(tmp_path, *tasks, "output=runs").folder, whole)) == ["config.yaml"], "config.yaml names the output folder"


def test_killed_before_the_checkpoint(killed_copy, uninterrupted):
    append(killed_copy, "clients.csv", next_row(killed_copy, "clients.csv"))
    append(killed_copy, "metrics.csv", next_row(killed_copy, "metrics.csv"))
    check_resumed(killed_copy, uninterrupted)


@pytest.mark.parametrize("name", ["metrics.csv", "clients.csv"])
def test_killed_within_a_line(killed_copy, uninterrupted, name):
    append(killed_copy, name, next_row(killed_copy, name)[:7])
    check_resumed(killed_copy, uninterrupted)


def test_killed_while_the_checkpoint_was_written(killed_copy, uninterrupted):
    (killed_copy / ".checkpoint.safetensors.tmp").write_bytes(b"half of it")
    check_resumed(killed_copy, uninterrupted)


def test_killed_between_the_two_files_of_the_checkpoint(killed_copy, uninterrupted):
    (killed_copy / "checkpoint.json").unlink()
    check_resumed(killed_copy, uninterrupted)


def test_killed_before_the_first_checkpoint(killed_copy, uninterrupted):
    (killed_copy / "checkpoint.safetensors").unlink()
    (killed_copy / "checkpoint.json").unlink()
    check_resumed(killed_copy, uninterrupted)


def test_killed_within_the_header(killed_copy, uninterrupted):
    for path in list(killed_copy.iterdir()):
        path.unlink()
    append(killed_copy, "clients.csv", "round,cli")
    check_resumed(killed_copy, uninterrupted)


def test_resumed_with_fewer_checkpoints(killed_copy, uninterrupted, tmp_path):
    ended = quick(tmp_path, *SHORT, "checkpoint_every=4")
    assert ended.code == 0 and list(differing(killed_copy, uninterrupted)) == ["config.yaml", "previous_checkpoint.safetensors"]


def test_a_finished_run_is_skipped(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted.parents[1], tmp_path / "runs")
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}
    ended = quick(tmp_path, *SHORT)
    assert ended.code == 0 and ended.folder == folder and "already finished, skipped" in ended.err
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"} == before


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_a_run_finished_at_another_commit_has_a_note(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted.parents[1], tmp_path / "runs")
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    environment = json.loads((folder / "environment.json").read_text())
    assert re.fullmatch("[0-9a-f]{40}", environment["commit"])
    (folder / "environment.json").write_text(json.dumps({**environment, "commit": "0" * 40}))
    ended = quick(tmp_path, *SHORT)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert ended.code == 0 and f"finished at commit {'0' * 40}, the code is now at {head}" in ended.err


def test_a_repeated_sweep_runs_only_what_is_missing(tmp_path):
    sweep = ("-m", "engine=local", *TINY, "rounds=1", "output=runs")
    first = quick(tmp_path, *sweep, "seed=0,1")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.csv")}
    second = quick(tmp_path, *sweep, "seed=0,1,2")
    assert first.code == second.code == 0 and first.out.count("run: ") == 2 and second.out.count("run: ") == 3
    assert first.err.count("already finished") == 0 and second.err.count("already finished") == 2
    assert len(times) == 6 and all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(list((tmp_path / "runs" / "digits").iterdir())) == 3 and second.folder not in {path.parent for path in times}


def test_the_checkpoint_of_another_configuration_is_refused(killed_copy, tmp_path):
    (tmp_path / "other").mkdir()
    other = quick(tmp_path / "other", *SHORT, "rounds=1", "seed=1").folder
    for name in ("checkpoint.safetensors", "checkpoint.json"):
        shutil.copy(other / name, killed_copy / name)
    check_refused(killed_copy, "output", other.name, killed_copy.name)


def damage(path: Path, how: str) -> None:
    """Damage a file."""
    content = path.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "no checkpoint": b"\xff" * 999, "one bit": flipped}[how])


@pytest.mark.parametrize("how", ["truncated", "empty", "no checkpoint", "one bit"])
def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before_it_and_says_so(killed_copy, uninterrupted, how):
    damage(killed_copy / "checkpoint.safetensors", how)
    ended = check_resumed(killed_copy, uninterrupted)
    assert "damaged: output must hold readable checkpoints" in ended.err and "the checkpoint before it" in ended.err


def test_two_damaged_checkpoints_are_refused(killed_copy):
    for name in ("checkpoint", "previous_checkpoint"):
        damage(killed_copy / f"{name}.safetensors", "one bit")
    check_refused(killed_copy, "output", str(killed_copy / "checkpoint.safetensors"), "force=true")
    forced = quick(killed_copy.parents[2], *SHORT, "force=true", "rounds=1")
    assert forced.code == 0


def test_a_finished_run_with_one_changed_bit_is_not_skipped(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted.parents[1], tmp_path / "runs")
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    damage(folder / "checkpoint.safetensors", "one bit")
    with pytest.raises(RunFolderError, match="corrupt: checkpoint.safetensors must be sound"):
        read_run(folder)
    ended = check_resumed(folder, uninterrupted)
    assert "going on from round 14, the checkpoint before it" in ended.err and read_run(folder)


@pytest.mark.parametrize("name", ["metrics.csv", "clients.csv"])
def test_a_last_row_that_was_lost_is_computed_again(killed_copy, uninterrupted, name):
    done = read_checkpoint(killed_copy).round  # checkpoint.json may be that of the round before it
    header, *lines = (killed_copy / name).read_text().splitlines(keepends=True)
    kept = [line for line in lines if int(line.partition(",")[0]) < done]
    (killed_copy / name).write_text("".join([header, *kept, lines[len(kept)][:-4]]))
    ended = check_resumed(killed_copy, uninterrupted)
    assert name in ended.err and "the checkpoint before it" in ended.err


@pytest.mark.parametrize("name", ["metrics.csv", "clients.csv"])
def test_a_hole_in_the_rows_is_refused(killed_copy, name):
    lines = (killed_copy / name).read_text().splitlines(keepends=True)
    (killed_copy / name).write_text("".join([lines[0], *lines[2:]]))
    check_refused(killed_copy, "output", "rows", str(killed_copy / name), "force=true")
