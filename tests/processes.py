"""Runs of the command in separate processes, and comparisons of their run folders."""

import json
import os
import signal
import subprocess
import sys
import tempfile
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
"""Overrides of a small federation with the default strategy FedGen and the default data."""

MARK = "FEDKD_TEST_MARK"
"""An environment variable that identifies all processes of a command."""

COMMAND = """
import sys
from simulations.run import main
sys.argv[0] = "run"
main()
"""

SERVER = """
import atexit, contextlib, gc, importlib, json, os, sys, tempfile, traceback
import torch, torchvision, torch._dynamo
torch.set_num_threads(1)  # threads do not survive a fork
import simulations.cli.hydra_command, simulations.distillation.runner, simulations.engine.worker, simulations.federation.runner
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.setup.simulation import build_simulation

def run(folder, arguments, environment, before, module, files):
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{files}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv, code = ["run", *arguments], 0
    try:
        exec(before, {})
        importlib.import_module(module).main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)

with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):  # imports the rest, and parses the modules
    run_federation(compose(["rounds=1", "local_steps=2", "engine=local", "clients_per_vmap=1", "progress=false", f"output={folder}"]))
build_simulation.cache_clear()
gc.collect(), gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    if os.fork() == 0:
        if (child := os.fork()) == 0:
            run(**job)
        print(child, flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with open(job["files"] + "/.code", "w") as file:
            file.write(str(code))
        os.replace(job["files"] + "/.code", job["files"] + "/code")
        os._exit(0)
os._exit(0)
"""
"""A program that has imported what runs need, and forks for each command, which saves the seconds of the imports.

It answers with the number of the forked process. The exit code of the command follows in a file.
"""


@dataclass
class Ended:
    """The result of a command.

    Args:
        code: its exit code.
        out: its standard output.
        err: its standard error.
    """

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run folder in the last line."""
        last = self.out.splitlines()[-1]
        assert last.startswith("run: "), last
        return Path(last.removeprefix("run: "))


def accept_interrupts() -> None:
    """Accept Ctrl-C. The children of a shell in the background ignore it by default."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Forked:
    """A command in a process that :data:`SERVER` has forked, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(self, **job: object) -> None:
        self.files = tempfile.TemporaryDirectory()
        self.returncode: int | None = None
        server().stdin.write(json.dumps({**job, "files": self.files.name}) + "\n")
        server().stdin.flush()
        self.pid = int(server().stdout.readline())

    def poll(self) -> int | None:
        """The exit code, None while the process runs."""
        if self.returncode is None and (code := Path(self.files.name, "code")).exists():
            self.returncode = int(code.read_text())
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL to the process alone."""
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end, and return standard output and standard error."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("the command", timeout)
            time.sleep(0.005)
        out, err = (Path(self.files.name, name).read_text() for name in ("out", "err"))
        return out, err


@dataclass
class Command:
    """A running command in its own session. A mark in the environment identifies all processes that it starts.

    Args:
        arguments: arguments of the command.
        where: its current folder.
        environment: additional environment variables.
        before: Python code that the process runs first.
        module: the module of the command.
        prefix: the words before the arguments of the interpreter.
        forked: fork the process from one that has imported all modules, instead of starting it.
    """

    arguments: tuple[str, ...]
    where: Path
    environment: dict[str, str] = field(default_factory=dict)
    before: str = ""
    module: str = "simulations.run"
    prefix: tuple[str, ...] = (sys.executable,)
    forked: bool = False

    def __post_init__(self) -> None:
        self.mark = uuid.uuid4().hex
        python_path = os.pathsep.join([*filter(None, [self.environment.get("PYTHONPATH")]), str(ROOT)])
        environment = {**self.environment, "PYTHONPATH": python_path, MARK: self.mark}
        self.process: subprocess.Popen | Forked
        if self.forked:
            self.process = Forked(
                folder=str(self.where), arguments=self.arguments, environment=environment, before=self.before, module=self.module
            )
            return
        entry = ["-c", self.before + COMMAND] if self.before else ["-m", self.module]
        self.process = subprocess.Popen(
            [*self.prefix, *entry, *self.arguments], cwd=self.where, env={**os.environ, **environment}, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=accept_interrupts,
        )  # fmt: skip

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the command and its process group, as a terminal or a scheduler does."""
        os.killpg(self.process.pid, number)

    def end(self, timeout: float = 180) -> Ended:
        """Wait for the end of the command, at most ``timeout`` seconds."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return Ended(self.process.returncode, out, err)

    def alive(self) -> list[int]:
        """The living processes that the command has started, directly or indirectly, without the command itself."""
        return [process for process in processes(f"{MARK}={self.mark}") if process != self.process.pid]


def processes(mark: str) -> list[int]:
    """The processes with ``mark``, as ``NAME=value``, in their environment."""
    numbers = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                numbers.append(int(folder.name))
        except OSError:
            continue
    return numbers


def run(where: Path, *arguments: str, **environment: str) -> Ended:
    """Run a command, and wait for its end."""
    return Command(arguments, where, environment).end()


@lru_cache(maxsize=1)
def server() -> subprocess.Popen:
    """The process of :data:`SERVER`, which ends with this process."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    return subprocess.Popen(
        [sys.executable, "-c", SERVER], env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=accept_interrupts,
    )  # fmt: skip


def quick(where: Path, *arguments: str) -> Ended:
    """Run a command in a forked process, and wait for its end."""
    return Command(arguments, where, forked=True).end()


def assert_refused(ended: Ended, output: Path, *words: str, code: int = 2) -> None:
    """Check the exit code, that the error is one line with all ``words``, and that no run was started.

    Messages about slow work may precede the error.
    """
    assert ended.code == code and ended.out == "", (ended.code, ended.out, ended.err)
    lines = [line for line in ended.err.strip().splitlines() if not line.startswith(("decoding ", "partition: "))]
    assert len(lines) == 1 and lines[0].startswith("error: "), ended.err
    assert all(word in lines[0] for word in words), (words, lines[0])
    assert not list(output.rglob("metrics.csv")) and not list(output.rglob("checkpoint*"))


def until(condition: Callable[[], bool], timeout: float = 120, what: str = "the condition") -> None:
    """Wait until ``condition()`` is true, at most ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited {timeout} seconds for {what}"
        time.sleep(0.02)


def rows(output: Path) -> int:
    """The number of rows of the only metrics.csv below ``output``, 0 if there is none yet."""
    return max((len(path.read_text().splitlines()) - 1 for path in output.rglob("metrics.csv")), default=0)


def metrics(folder: Path) -> pd.DataFrame:
    """metrics.csv without its timing columns and the number of workers, with all cells as text."""
    table = pd.read_csv(folder / "metrics.csv", dtype=str, keep_default_na=False)
    costs = [name for name in table if name.endswith("_seconds") and name != "simulated_seconds"]
    return table.drop(columns=[*costs, *({"num_workers"} & set(table))])


def differing(left: Path, right: Path) -> Iterator[str]:
    """The names of the files that differ between two run folders, without timing columns and environment.json."""
    files = {str(path.relative_to(folder)) for folder in (left, right) for path in folder.rglob("*") if path.is_file()}
    for name in sorted(files - {"environment.json", ".lock"}):
        if name == "metrics.csv":
            if not metrics(left).equals(metrics(right)):
                yield name
        elif not all((folder / name).exists() for folder in (left, right)) or (left / name).read_bytes() != (right / name).read_bytes():
            yield name
