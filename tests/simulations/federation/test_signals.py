"""Ctrl-C, SIGTERM and SIGKILL: the run can continue, and no process is left."""

import signal
import tempfile
import time
from pathlib import Path

import pytest

from tests.processes import Command, differing, quick, rows, until
from tests.simulations.federation.resume_tools import LOCAL, LONG, check_resumed

RAY = ("engine=ray", "engine.workers=2", *LONG)
INTERRUPTED = "interrupted: run the same command to continue from the last checkpoint\n"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    return quick(tmp_path_factory.mktemp("uninterrupted"), *LOCAL).folder


def test_ctrl_c_in_a_local_run(uninterrupted, tmp_path):
    command = Command(LOCAL, tmp_path)
    until(lambda: rows(tmp_path) >= 2)
    command.kill(signal.SIGINT)
    ended = command.end(timeout=20)
    assert (ended.code, ended.err) == (130, INTERRUPTED)
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    assert 2 <= rows(tmp_path) < 30
    check_resumed(folder, uninterrupted, LOCAL)


def test_ctrl_c_while_ray_starts(tmp_path):
    """The signal takes effect when Ray's processes can be stopped together."""
    command = Command(RAY, tmp_path, forked=True)
    until(lambda: bool(command.alive()), what="the first of Ray's processes")
    command.kill(signal.SIGINT)
    ended = command.end(timeout=60)
    assert (ended.code, ended.out, ended.err) == (130, "", INTERRUPTED)
    until(lambda: not command.alive(), 10, "the end of Ray's processes")


@pytest.mark.slow
def test_signals_in_a_ray_run(uninterrupted, tmp_path):
    """One run is ended by Ctrl-C, by SIGTERM of a scheduler, and by SIGKILL of the command alone. No process and no file of Ray is left.

    One process continues it to its end, and its files are those of one run. An empty RAY_ADDRESS is none.
    """
    temporary = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # pytest's folder would be too long for sockets
    environment = {"RAY_ADDRESS": "", "RAY_TMPDIR": str(temporary)}
    for number, code, message in ((signal.SIGINT, 130, INTERRUPTED), (signal.SIGTERM, -15, ""), (signal.SIGKILL, -9, "")):
        command, before = Command(RAY, tmp_path, environment, forked=True), rows(tmp_path)
        until(lambda least=before + 3: rows(tmp_path) >= least, what="three more rows")
        assert len(command.alive()) >= 4, "Ray's processes and two actors are visible"
        sent = time.monotonic()
        assert len(list(temporary.iterdir())) == 1
        command.process.kill() if number == signal.SIGKILL else command.kill(number)
        ended = command.end(timeout=60)
        try:
            until(lambda running=command: not running.alive(), sent + 60 - time.monotonic())
        except AssertionError:
            left = [Path(f"/proc/{process}/cmdline").read_text() for process in command.alive()]
            raise AssertionError(f"after signal {number}: {left}") from None
        assert (ended.code, ended.out, ended.err) == (code, "", message)
        assert rows(tmp_path) < 30 and not list(temporary.iterdir())
    temporary.rmdir()
    ended = quick(tmp_path, *LOCAL)
    assert ended.code == 0, ended.err
    assert list(differing(ended.folder, uninterrupted)) == []
