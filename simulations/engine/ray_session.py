"""A Ray instance of this process alone: it listens on the loopback interface, keeps its files private, and ends with this process.

Ray by itself listens on all interfaces and writes to a folder that every user of the machine can read and change.
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from fedkd.errors import EngineError, one_line
from simulations.engine import ray_watcher

MAX_SOCKET_BYTES = 107
"""Bytes that the path of a Unix socket can have on Linux."""

LONGEST_SOCKET = "/fedkd-abcdefgh/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path of a socket of Ray, relative to the folder of temporary files."""

SERVERS = {"raylet": "raylet", "gcs_server": "GCS"}
"""The processes without which Ray cannot work, as the system and as Ray's pages call them."""


def check_open_files(num_workers: int) -> None:
    """Check the limit of open files. Below it Ray ends this process without an exception, or waits.

    Args:
        num_workers: number of actors.

    Raises:
        EngineError: the limit is too low.
    """
    needed = 40 + 12 * num_workers
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray raises the soft limit to this one
    if hard != resource.RLIM_INFINITY and hard < needed:
        rule = f"Ray needs {needed} open files for {num_workers} workers; raise the limit (ulimit -n {needed}), or use engine=local"
        raise EngineError(f"{rule}, got {hard}")


def temporary_folder() -> Path:
    """The folder for Ray's files: RAY_TMPDIR, else TMPDIR or the system's, else ``/tmp`` where this is too long for a Unix socket."""
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    longest = MAX_SOCKET_BYTES - len(LONGEST_SOCKET)
    if len(os.fsencode(folder)) > longest:
        print(f"note: Ray uses /tmp, as {name} must have at most {longest} bytes for Unix sockets, got '{folder}'", file=sys.stderr)
        return Path("/tmp")
    return folder


def make_session_folder() -> str:
    """A new folder of mode 0700 for the files of a Ray instance.

    Raises:
        EngineError: the folder of temporary files cannot be written.
    """
    try:
        parent = temporary_folder()
        parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix="fedkd-", dir=parent)
    except OSError as error:
        rule = "Ray needs a folder for temporary files that can be written; set RAY_TMPDIR"
        raise EngineError(f"{rule}, got {str(error.filename)!r}: {error.strerror}") from error


class RaySession:
    """The files and the processes of a Ray instance, and the watcher that ends them when this process is gone.

    Raises:
        EngineError: the folder of temporary files cannot be written, or the watcher cannot be started.
    """

    def __init__(self) -> None:
        self.folder = make_session_folder()
        self.resources: Mapping[str, float] = {}
        self._servers: dict[str, psutil.Process] = {}
        command = [sys.executable, "-S", "-P", ray_watcher.__file__, self.folder, str(os.getpid())]
        with start_errors():
            self._watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd="/")

    @contextmanager
    def starting(self) -> Iterator[str]:
        """A block in which Ray is started with the yielded folder. Its processes are known to the watcher.

        Raises:
            EngineError: Ray does not start.
        """
        marks = {ray_watcher.MARK: self.folder, "SPT_NOENV": "1"}  # otherwise Ray's agents overwrite their environment with titles
        os.environ |= marks
        try:
            with start_errors():
                yield f"{self.folder}/r"  # Ray opens its own folder to all users, so it must lie inside a private one
            self._servers = {process.name(): process for process in psutil.Process().children() if process.name() in SERVERS}
        finally:
            for name in marks:
                del os.environ[name]

    def ended_server(self) -> str | None:
        """Ray's server that has ended, with its process, or None."""
        for name, process in self._servers.items():
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return f"Ray's {SERVERS[name]} (process {process.pid})"
        return None

    def kill(self) -> None:
        """End Ray's processes at once."""
        ray_watcher.end_ray(self.folder)

    def close(self) -> None:
        """Let the watcher end what is left of Ray's processes and remove its files, without waiting for it.

        Ray must be shut down, as it would write new files.
        """
        with suppress(OSError):  # the watcher has been killed
            assert self._watcher.stdin is not None
            self._watcher.stdin.write(b"end")  # closing the pipe is not enough, as a forked child can hold it
            self._watcher.stdin.close()


@contextmanager
def start_errors() -> Iterator[None]:
    """Turn exceptions of a block that starts Ray into one line with the limits of this process, which are the usual reason.

    Raises:
        EngineError: the block raises an exception.
    """
    try:
        yield
    except Exception as error:
        limits = ", ".join(
            f"{limit(number)} {name}" for number, name in ((resource.RLIMIT_NOFILE, "open files"), (resource.RLIMIT_NPROC, "processes"))
        )
        said = one_line(error) or type(error).__name__
        remedy = f"raise the limits of this shell (ulimit: {limits}), or use engine=local"
        raise EngineError(f"Ray does not start: {said}; {remedy}") from error


def limit(number: int) -> str:
    """A soft limit of this process."""
    soft, _ = resource.getrlimit(number)
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
