"""A Ray of this process alone: where its files are, which limits it needs, and what ends it."""

import errno
import math
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedkd.errors import EngineError
from simulations.cli.exit_codes import FAILED, exit_code
from simulations.engine import ray_cluster, ray_session, ray_watcher
from simulations.engine.ray_session import LONGEST_SOCKET, MAX_SOCKET_BYTES, check_open_files, make_session_folder, temporary_folder
from tests.processes import ROOT, until

LONGEST = MAX_SOCKET_BYTES - len(LONGEST_SOCKET)


@pytest.fixture
def temporary(monkeypatch):
    """A function that sets RAY_TMPDIR and TMPDIR for new folders."""

    def set_both(ray: str | None, system: str | None) -> None:
        monkeypatch.setattr("tempfile.tempdir", None)
        for name, value in (("RAY_TMPDIR", ray), ("TMPDIR", system)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)

    return set_both


def test_ray_tmpdir_is_before_tmpdir_and_empty_is_unset(temporary, tmp_path):
    temporary("/short", str(tmp_path))
    assert temporary_folder() == Path("/short")
    temporary("", "/dev/shm")
    assert temporary_folder() == Path("/dev/shm")


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_that_is_too_long_for_a_socket_is_replaced(temporary, tmp_path, capsys, name):
    folder = tmp_path / ("x" * LONGEST)
    folder.mkdir()
    temporary(str(folder) if name == "RAY_TMPDIR" else None, str(folder))
    assert temporary_folder() == Path("/tmp")
    assert capsys.readouterr().err == f"note: Ray uses /tmp, as {name} must have at most {LONGEST} bytes for Unix sockets, got '{folder}'\n"


@pytest.mark.parametrize(("name", "fits"), [("a" * (LONGEST - 1), True), ("a" * LONGEST, False), ("ü" * (LONGEST // 2), False)])
def test_bytes_count_and_the_longest_folder_fits(temporary, name, fits):
    temporary(f"/{name}", None)
    assert (temporary_folder() == Path(f"/{name}")) == fits


def test_the_folder_of_a_session_is_private(temporary):
    temporary("/tmp", None)
    folder = Path(make_session_folder())
    try:
        assert folder.parent == Path("/tmp") and folder.stat().st_mode & 0o777 == 0o700
        assert len(folder.name) == len("fedkd-abcdefgh")
    finally:
        folder.rmdir()


def test_a_folder_that_cannot_be_written_is_one_line(temporary):
    temporary("/proc/x", None)
    with pytest.raises(
        EngineError, match="^Ray needs a folder for temporary files that can be written; set RAY_TMPDIR, got '/proc/x': No such"
    ):
        make_session_folder()


@pytest.mark.parametrize(
    ("limit", "workers", "enough"), [(64, 2, True), (63, 2, False), (64, 3, False), (resource.RLIM_INFINITY, 99, True)]
)
def test_the_limit_of_open_files(monkeypatch, limit, workers, enough):
    monkeypatch.setattr(ray_session.resource, "getrlimit", lambda _: (10, limit))
    if enough:
        return check_open_files(workers)
    with pytest.raises(EngineError, match=rf"ulimit -n {40 + 12 * workers}\).*got {limit}$"):
        check_open_files(workers)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("a\npage\nof text"), ValueError()])
def test_an_error_of_the_start_is_one_line(error):
    with pytest.raises(EngineError) as raised, ray_session.start_errors():
        raise error
    code, text = exit_code(raised.value)
    assert code == FAILED and text.startswith("error: Ray does not start: ") and "\n" not in text and "ulimit" in text
    assert " ".join(str(error).split()) in text


def test_a_process_that_is_just_starting_a_program_is_found(monkeypatch, tmp_path):
    """Such a process has no environment for a moment, so one search without a result does not show that all have ended."""
    found, killed = iter([[11], [], [], [12]]), []
    monkeypatch.setattr(ray_watcher, "EMPTY_SEARCHES", 5)
    monkeypatch.setattr(ray_watcher, "processes_of", lambda _: next(found, []))
    monkeypatch.setattr(ray_watcher.os, "kill", lambda process, _: killed.append(process))
    ray_watcher.end_ray(str(tmp_path / "r"))
    assert killed == [11, 12]


PARENT = """
import os, subprocess, sys, time
from simulations.engine.ray_session import RaySession
session = RaySession()
with session.starting() as folder:
    os.makedirs(folder + "/sockets")
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    started = [subprocess.Popen([sys.executable, "-c", child], start_new_session=new, stdout=subprocess.PIPE) for new in (True, False)]
    [process.stdout.read(1) for process in started]
if os.fork() == 0:  # it holds the pipe to the watcher, and is no process of Ray
    time.sleep(20), os._exit(0)
print(session.folder, *(process.pid for process in started), flush=True)
sys.stdin.read()
session.close()
"""


@pytest.mark.parametrize("way", ["SIGKILL", "SIGTERM", "end"])
def test_nothing_is_left_of_a_session_when_its_process_ends(tmp_path, way):
    """Its processes have sessions of their own and ignore SIGTERM, and another process holds the pipe to the watcher."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": "/tmp"}
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    folder, *numbers = parent.stdout.readline().split()
    assert sorted(ray_watcher.processes_of(folder)) == sorted(map(int, numbers)) and (Path(folder) / "r" / "sockets").is_dir()
    parent.stdin.close() if way == "end" else parent.send_signal(getattr(signal, way))
    parent.wait(timeout=10)
    until(lambda: not Path(folder).exists(), 20, "the end of the watcher")
    assert not ray_watcher.processes_of(folder)


@pytest.mark.parametrize(
    ("server", "limit", "message"),
    [
        ("Ray's GCS (process 7)", math.inf, "Ray's GCS (process 7) has ended, so no client can train."),
        (None, 0.05, "Ray does not start within"),
    ],
)
def test_a_call_that_ray_does_not_return_from_ends_the_process(monkeypatch, capsys, server, limit, message):
    ended, killed = threading.Event(), []
    session = SimpleNamespace(ended_server=lambda: server, kill=lambda: killed.append(True))
    monkeypatch.setattr(ray_cluster, "_sessions", [session])
    monkeypatch.setattr(ray_cluster, "CHECK_INTERVAL", 0.01)
    monkeypatch.setattr(ray_cluster, "ANSWER_TIMEOUT", 0.01)
    monkeypatch.setattr(ray_cluster.os, "_exit", lambda code: ended.set() if code == 1 else None)
    with ray_cluster.bounded(limit):
        assert ended.wait(20)
    assert killed and capsys.readouterr().err.startswith(f"error: {message}")
