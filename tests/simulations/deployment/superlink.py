"""A SuperLink and SuperNodes of Flower as processes on this machine, on the loopback interface, for tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import ROOT, processes

QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1", "OMP_NUM_THREADS": "1",
}  # fmt: skip
"""Environment of Flower's processes: nothing is installed or reported, and work is looked for often."""


class Superlink:
    """A SuperLink with its SuperNodes. All processes end with the block of :func:`superlink`.

    Args:
        folder: for the files of Flower and the logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.port = folder, folder / "flower_home", free_port()
        self.home.mkdir(parents=True)
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, **QUIET, "FLWR_HOME": str(self.home), "PATH": path}
        self.start("superlink", "flower-superlink", "--insecure", "--port", str(self.port))
        self.until(lambda: accepts(self.port), 60, "the SuperLink")

    def start(self, name: str, *command: str) -> subprocess.Popen:
        """Start a process that writes to the log file ``name``."""
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start_node(self, name: str, node_config: str) -> subprocess.Popen:
        """Start a SuperNode."""
        address, port = f"127.0.0.1:{self.port}", str(free_port())
        return self.start(
            name, "flower-supernode", "--insecure", "--superlink", address, "--port", port, "--node-config", node_config
        )  # fmt: skip

    def run(self, run_config: str) -> None:
        """Hand the app to the SuperLink, as ``flwr run``, which returns once the run is accepted."""
        command = ["flwr", "run", str(ROOT), "loopback", "--run-config", run_config, "--format", "json"]
        ended = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False)
        accepted = ended.returncode == 0 and json.loads(ended.stdout[ended.stdout.index("{") :])["success"]
        assert accepted, ended.stdout + ended.stderr

    def until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait until ``condition()`` is true. The error shows the logs."""
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"waited {timeout} seconds for {what}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(self.folder.glob("*.log")))


def accepts(port: int) -> bool:
    """Whether a server listens at the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port of the loopback interface that is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def superlink(folder: Path) -> Iterator[Superlink]:
    """A SuperLink, whose processes and those of its nodes are ended after the block."""
    link = Superlink(folder)
    try:
        yield link
    finally:
        for process in processes(f"FLWR_HOME={link.home}"):
            os.kill(process, signal.SIGKILL)
