"""Runs of the command in processes of their own, and what they leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
TINY = (
    "num_clients=6",
    "clients_per_round=4",
    "local_steps=3",
    "partition.alpha=1.0",
    "strategy.generator_steps=3",
    "progress=false",
    "clients_per_vmap=1",
)
"""A small federation of the default strategy, FedGen, on the default data."""
MARK = "FEDKD_TEST_MARK"

COMMAND = """
import sys
from simulations.run import main
sys.argv[0] = "fedkd-run"
main()
"""

SERVER = """
import json, os, sys, traceback
import sklearn.datasets, torchvision
import simulations.run
sklearn.datasets.load_digits()
for line in sys.stdin:
    job = json.loads(line)
    if (child := os.fork()) == 0:
        os.chdir(job["folder"])
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.argv, code = ["fedkd-run", *job["arguments"]], 0
        try:
            simulations.run.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Ended:
    """A command after its end."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run folder that the last line names."""
        last = self.out.splitlines()[-1]
        assert last.startswith("run: "), last
        return Path(last.removeprefix("run: "))


def listen() -> None:
    """Let Ctrl-C be heard: a shell that runs the tests in the background lets its children ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Command:
    """A command that runs, in a session of its own; every process that it starts is known by a mark in its environment.

    Args:
        arguments: of the command.
        where: the folder to stand in.
        environment: more of it.
        before: Python that its process runs first.
        module: the command.
    """

    arguments: tuple[str, ...]
    where: Path
    environment: dict[str, str] = field(default_factory=dict)
    before: str = ""
    module: str = "simulations.run"

    def __post_init__(self) -> None:
        self.mark = uuid.uuid4().hex
        python_path = os.pathsep.join([*filter(None, [self.environment.get("PYTHONPATH")]), str(ROOT)])
        env = {**os.environ, **self.environment, "PYTHONPATH": python_path, MARK: self.mark}
        entry = ["-c", self.before + COMMAND] if self.before else ["-m", self.module]
        self.process = subprocess.Popen(
            [sys.executable, *entry, *self.arguments], cwd=self.where, env=env, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen,  # noqa: PLW1509 - no threads here
        )  # fmt: skip

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the command and its process group, as a terminal or a scheduler does."""
        os.killpg(self.process.pid, number)

    def end(self, timeout: float = 180) -> Ended:
        """Wait for its end."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return Ended(self.process.returncode, out, err)

    def alive(self) -> list[int]:
        """All processes that the command has started, however far removed, itself left out."""
        return [process for process in processes(f"{MARK}={self.mark}") if process != self.process.pid]


def processes(mark: str) -> list[int]:
    """Processes with ``mark``, an assignment, in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def run(where: Path, *arguments: str, **environment: str) -> Ended:
    """One command from its beginning to its end."""
    return Command(arguments, where, environment).end()


@lru_cache(maxsize=1)
def server() -> subprocess.Popen:
    """A process that has imported everything, and forks for each command; it ends with this one."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", SERVER], env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def quick(where: Path, *arguments: str) -> Ended:
    """One command from its beginning to its end, in a process of its own, without the seconds of imports."""
    server().stdin.write(json.dumps({"folder": str(where), "arguments": arguments}) + "\n")
    server().stdin.flush()
    code = int(server().stdout.readline())
    return Ended(code, (where / "out").read_text(), (where / "err").read_text())


def until(holds: Callable[[], bool], timeout: float = 120, what: str = "it") -> None:
    """Wait until ``holds``."""
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, f"{what} did not come about in {timeout} seconds"
        time.sleep(0.02)


def rows(output: Path) -> int:
    """Rows of the one metrics.csv below ``output``; 0 where there is none yet."""
    return max((len(path.read_text().splitlines()) - 1 for path in output.rglob("metrics.csv")), default=0)


def metrics(folder: Path) -> pd.DataFrame:
    """metrics.csv without its timing columns, every cell as the text it is."""
    table = pd.read_csv(folder / "metrics.csv", dtype=str, keep_default_na=False)
    return table[[name for name in table if not (name.endswith("_seconds") and name != "simulated_seconds")]]


def differing(left: Path, right: Path) -> Iterator[str]:
    """Names of the files that differ between two run folders; timing columns and environment.json do not count."""
    for name in sorted({path.name for folder in (left, right) for path in folder.iterdir()} - {"environment.json", ".lock"}):
        if name == "metrics.csv":
            if not metrics(left).equals(metrics(right)):
                yield name
        elif not all((folder / name).exists() for folder in (left, right)) or (left / name).read_bytes() != (right / name).read_bytes():
            yield name
