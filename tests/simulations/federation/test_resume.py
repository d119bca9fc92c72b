"""Killed at any moment and started again = never killed, byte for byte."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from simulations.config import compose
from simulations.engine.local_engine import LocalGrid
from simulations.federation.runner import run_federation
from simulations.setup.simulation import build_simulation
from tests.small_runs import STRATEGIES, strategy_overrides
from tests.processes import ROOT, TINY, Command, differing, metrics, quick, rows, run, until

LONG = (*TINY, "rounds=30", "output=runs")
LOCAL = ("engine=local", *LONG)
RAY = ("engine=ray", "engine.workers=2", *LONG)
INTERRUPTED = "interrupted: run the same command to continue from the last checkpoint\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that was never killed."""
    return quick(tmp_path_factory.mktemp("whole"), *LOCAL).folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """Where a run was killed in its middle; while it ran, nobody else could have its folder."""
    where = tmp_path_factory.mktemp("killed")
    (where / "second").mkdir()
    command = Command(LOCAL, where)
    until(lambda: rows(where) >= 3, what="the third row")
    command.kill(signal.SIGSTOP)
    second = quick(where / "second", "engine=local", *TINY, "rounds=30", f"output={where / 'runs'}")
    command.kill()
    command.end()
    assert second.code == 2 and "in use" in second.err and second.err.startswith("error: output"), second.err
    assert 3 <= rows(where) < 30, "it was killed in its middle"
    return where


@pytest.fixture
def copy(killed, tmp_path) -> Path:
    """The killed run's folder, to go on from."""
    shutil.copytree(killed / "runs", tmp_path / "runs")
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    return folder


def check_resumed(folder: Path, whole: Path) -> None:
    ended = quick(folder.parents[2], *LOCAL)
    assert ended.code == 0 and ended.folder == folder, ended.err
    assert list(differing(folder, whole)) == []
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def append(folder: Path, name: str, text: str) -> None:
    with open(folder / name, "a") as file:
        file.write(text)


def last_row(folder: Path, name: str) -> str:
    """The last row again, as that of the next round."""
    number, _, rest = (folder / name).read_text().splitlines()[-1].partition(",")
    return f"{int(number) + 1},{rest}\n"


def test_killed_and_resumed(copy, whole):
    before = len(metrics(copy))
    check_resumed(copy, whole)
    assert before < len(metrics(copy)) == 30


class Dying(LocalGrid):
    """Ends the run when its third round is to begin."""

    def send(self, messages, *, timeout=None):
        if messages[0].content["config"]["server-round"] == 3:
            raise KeyboardInterrupt
        return super().send(messages, timeout=timeout)


@pytest.mark.parametrize("name", STRATEGIES)
def test_interrupted_after_two_rounds_and_resumed(tmp_path, name):
    """Whatever server and clients remember goes on from the checkpoint: consensus, generator, its moments, control variates, tables."""
    given = [*(one for one in TINY if not one.startswith("strategy.")), f"strategy={name}", *strategy_overrides(name), "engine=local", "rounds=4"]
    given += ["validation_fraction=0.2"] if name == "feddf" else []
    folders = [run_federation(compose([*given, f"output={tmp_path / 'whole'}"]))]
    with pytest.raises(KeyboardInterrupt):
        run_federation(compose([*given, f"output={tmp_path / 'cut'}"]), Dying)
    assert rows(tmp_path / "cut") == 1, "the second round's row waits for its evaluation"
    build_simulation.cache_clear()
    folders.append(run_federation(compose([*given, f"output={tmp_path / 'cut'}"])))
    assert len(metrics(folders[0])) == 4 and list(differing(*folders)) == ["config.yaml"], "which names the output"


def test_killed_before_the_checkpoint(copy, whole):
    append(copy, "clients.csv", last_row(copy, "clients.csv"))
    append(copy, "metrics.csv", last_row(copy, "metrics.csv"))
    check_resumed(copy, whole)


@pytest.mark.parametrize("name", ["metrics.csv", "clients.csv"])
def test_killed_within_a_line(copy, whole, name):
    append(copy, name, last_row(copy, name)[:7])
    check_resumed(copy, whole)


def test_killed_while_the_checkpoint_was_written(copy, whole):
    (copy / ".checkpoint.safetensors.tmp").write_bytes(b"half of it")
    check_resumed(copy, whole)


def test_killed_between_the_two_files_of_the_checkpoint(copy, whole):
    (copy / "checkpoint.json").unlink()
    check_resumed(copy, whole)


def test_killed_before_the_first_checkpoint(copy, whole):
    (copy / "checkpoint.safetensors").unlink()
    (copy / "checkpoint.json").unlink()
    check_resumed(copy, whole)


def test_killed_within_the_header(copy, whole):
    for path in list(copy.iterdir()):
        path.unlink()
    append(copy, "clients.csv", "round,cli")
    check_resumed(copy, whole)


def test_resumed_by_another_engine_with_fewer_checkpoints(copy, whole, tmp_path):
    ended = quick(tmp_path, *LOCAL, "checkpoint_every=7")
    assert ended.code == 0 and list(differing(copy, whole)) == ["config.yaml"]


def test_finished_is_skipped(whole, tmp_path):
    shutil.copytree(whole.parents[1], tmp_path / "runs")
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}
    ended = quick(tmp_path, *LOCAL)
    assert ended.code == 0 and ended.folder == folder and "already finished" in ended.err
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"} == before


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_finished_at_another_commit_is_said(whole, tmp_path):
    shutil.copytree(whole.parents[1], tmp_path / "runs")
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    environment = json.loads((folder / "environment.json").read_text())
    assert re.fullmatch("[0-9a-f]{40}", environment["commit"])
    (folder / "environment.json").write_text(json.dumps({**environment, "commit": "0" * 40}))
    ended = quick(tmp_path, *LOCAL)
    assert ended.code == 0 and f"finished at commit {'0' * 40}, the code is now at {environment['commit']}" in ended.err


def test_a_sweep_started_again_does_what_is_missing(tmp_path):
    strategy_overrides = ("-m", "engine=local", *TINY, "rounds=1", "output=runs")
    first = quick(tmp_path, *strategy_overrides, "seed=0,1")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.csv")}
    second = quick(tmp_path, *strategy_overrides, "seed=0,1,2")
    assert first.code == second.code == 0 and first.out.count("run: ") == 2 and second.out.count("run: ") == 3
    assert first.err.count("already finished") == 0 and second.err.count("already finished") == 2
    assert len(times) == 4 and all(path.stat().st_mtime_ns == then for path, then in times.items())
    assert len(list((tmp_path / "runs" / "digits").iterdir())) == 3 and second.folder not in {path.parent for path in times}


def refused(folder: Path, *words: str) -> None:
    """Not resumed, and nothing touched."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    ended = quick(folder.parents[2], *LOCAL)
    assert ended.code == 2 and ended.out == "" and len(ended.err.strip().splitlines()) == 1
    assert all(word in ended.err for word in words), ended.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_checkpoint_of_another_configuration(copy, tmp_path):
    (tmp_path / "other").mkdir()
    other = quick(tmp_path / "other", *LOCAL, "rounds=1", "seed=1").folder
    for name in ("checkpoint.safetensors", "checkpoint.json"):
        shutil.copy(other / name, copy / name)
    refused(copy, "output", other.name, copy.name)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "garbage"])
def test_a_damaged_checkpoint(copy, damage):
    path = copy / "checkpoint.safetensors"
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "emptied": b"", "garbage": b"\xff" * 999}[damage])
    refused(copy, "output", str(path), "remove")


def test_ctrl_c_ends_a_local_run_that_can_go_on(whole, tmp_path):
    command = Command(LOCAL, tmp_path)
    until(lambda: rows(tmp_path) >= 2)
    command.kill(signal.SIGINT)
    ended = command.end(timeout=20)
    assert ended.code == 130 and "Traceback" not in ended.err and "interrupted" in ended.err
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    assert 2 <= rows(tmp_path) < 30
    check_resumed(folder, whole)


def test_ctrl_c_while_ray_starts(tmp_path):
    """It waits until Ray can be stopped as a whole."""
    command = Command(RAY, tmp_path)
    until(lambda: bool(command.alive()), what="the first of Ray's processes")
    command.kill(signal.SIGINT)
    ended = command.end(timeout=60)
    assert (ended.code, ended.out, ended.err) == (130, "", INTERRUPTED)
    until(lambda: not command.alive(), 10, "the end of Ray's processes")


def test_ray_interrupted_killed_and_resumed(whole, tmp_path):
    """Ctrl-C in the middle, then what a scheduler sends, then SIGKILL: no process stays, and the files are those of one run."""
    for number, code, message in ((signal.SIGINT, 130, INTERRUPTED), (signal.SIGTERM, -15, ""), (signal.SIGKILL, -9, "")):
        command, before = Command(RAY, tmp_path), rows(tmp_path)
        until(lambda least=before + 3: rows(tmp_path) >= least, what="the third row")
        assert len(command.alive()) >= 4, "Ray's processes can be seen, and those of two actors"
        began = time.monotonic()
        command.kill(number)
        ended = command.end(timeout=15)
        gone = lambda it=command: not it.alive()
        try:
            until(gone, began + 15 - time.monotonic())
        except AssertionError:
            raise AssertionError(
                f"after signal {number}: {[Path(f'/proc/{one}/cmdline').read_text() for one in command.alive()]}"
            ) from None
        assert (ended.code, ended.out, ended.err) == (code, "", message)
        assert rows(tmp_path) < 30
    ended = run(tmp_path, *RAY)
    assert ended.code == 0, ended.err
    assert list(differing(ended.folder, whole)) == ["config.yaml"], "which names the engine"
