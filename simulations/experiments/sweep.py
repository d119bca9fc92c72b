"""A sweep: several runs at a time, each in its own process, with one line of progress per run.

A run that fails does not stop the others. All state is in the run folders, so a sweep that was killed resumes from them.
"""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from omegaconf import DictConfig

from simulations.distillation.runner import run_distillation
from simulations.experiments.plan import PlannedRun
from simulations.federation.runner import run_federation
from simulations.overrides import explain
from simulations.progress import ProgressTable
from simulations.run_folder.observers import RunObserver, SaveCheckpoint


class Teller:
    """The progress of a run, told to whoever watches."""

    def __init__(self, connection: Connection, total: int, done: int) -> None:
        self._connection = connection
        connection.send(("begin", (total, done)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to be put back."""

    def advance(self, row: Mapping[str, float]) -> None:
        """Tell of a round."""
        self._connection.send(("row", dict(row)))


class EpochTeller(RunObserver):
    """The progress of a distillation, sent to the process that watches.

    Args:
        connection: to that process.
        total: number of epochs.
    """

    def __init__(self, connection: Connection, total: int) -> None:
        self._connection, self._total = connection, total

    def begin(self, folder: Path, first: int) -> None:
        """Send how many epochs are done."""
        self._connection.send(("begin", (self._total, first - 1)))

    def round(self, number: int, metrics: Mapping[str, Any], clients: Sequence[Mapping[str, Any]], save: SaveCheckpoint) -> None:
        """Send the row of an epoch."""
        self._connection.send(("row", {**metrics, "round": number}))


def num_rounds(config: DictConfig) -> int:
    """The rounds of a federated run, or the epochs of a distillation."""
    return config["epochs" if "distiller" in config else "rounds"]


TRACEBACK = re.compile(r"Traceback \(most recent call last\):.*; (?=[\w.]*(Error|Exception)\b)")


def work(config: DictConfig, connection: Connection, log: Path) -> None:
    """One run, in a process of its own; what it prints goes to ``log``, and why it failed to ``connection``."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it says when it ends
    signal.signal(signal.SIGTERM, interrupt)
    with open(log, "w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)

    def shown(config: DictConfig, first: int) -> AbstractContextManager:
        return Teller(connection, config.rounds, first - 1)

    try:
        if "distiller" in config:
            run_distillation(config, observers=[EpochTeller(connection, config.epochs)])
        else:
            run_federation(config, make_progress=shown)
        connection.send(("end", None))
    except KeyboardInterrupt:
        connection.send(("end", "interrupted"))
    except BaseException as error:
        connection.send(("end", one_line(error)))
        raise


def one_line(error: BaseException) -> str:
    """What is wrong, without line breaks, and of a traceback its end alone: the log has the rest."""
    text = " ".join((explain(error) if isinstance(error, Exception) else str(error)).split())
    return TRACEBACK.sub("", text) or type(error).__name__


def interrupt(number: int, frame: object) -> None:
    """As Ctrl-C does."""
    raise KeyboardInterrupt


def die_with_parent() -> None:
    """End this process, as by SIGKILL, when the one that asked for it is no more, however that ended."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


IMPORTED = (
    "simulations.experiments.sweep", "torch._dynamo", "torchvision", "sklearn.datasets", "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
)  # fmt: skip
"""What every run needs and would import for itself, for seconds."""


PATIENCE = 15.0
"""Seconds that a process has to end when it is asked to."""


@dataclass
class Process:
    """A run that is under way."""

    planned: PlannedRun
    process: BaseProcess
    shown: bool = False
    done: int = 0
    error: str | None = "its process ended before the run did"
    began: float = field(default_factory=time.monotonic)


def starter() -> multiprocessing.context.BaseContext:
    """Processes are forked from one that has imported everything and does nothing else, where the system can."""
    able = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if able else "spawn")
    if able:
        context.set_forkserver_preload(list(IMPORTED))
    return context


def ready() -> None:
    """Let imports begin that the first processes would have to wait for."""
    if starter().get_start_method() == "forkserver":
        forkserver.ensure_running()


def sweep(runs: Sequence[PlannedRun], at_once: int, logs: Path, board: ProgressTable) -> dict[str, str]:
    """Execute ``runs``, so many at a time, and return why the others failed, by their label.

    Args:
        runs: each another run.
        at_once: processes.
        logs: the folder of what each run prints, a file each.
        board: where progress is shown.
    """
    context, waiting, failed, ended, began = starter(), deque(runs), {}, 0, time.monotonic()
    running: dict[Connection, Process] = {}
    rounds, ended_rounds = sum(num_rounds(run.config) for run in runs), 0
    logs.mkdir(parents=True, exist_ok=True)
    try:
        with board:
            while waiting or running:
                while waiting and len(running) < at_once:
                    begin(context, waiting.popleft(), logs, running)
                board.overall(ended_rounds + sum(one.done for one in running.values()), rounds)
                for connection in wait(list(running)):
                    if (one := hear(connection, running, board)) is not None:
                        ended, ended_rounds = ended + 1, ended_rounds + num_rounds(one.planned.config)
                        left = timedelta(seconds=round((time.monotonic() - began) / ended * (len(runs) - ended)))
                        if why := conclude(one, board, f"{ended} of {len(runs)}, {left} left"):
                            failed[one.planned.label] = why
    finally:
        end_all([one.process for one in running.values()])
    return failed


def begin(context: multiprocessing.context.BaseContext, planned: PlannedRun, logs: Path, running: dict[Connection, Process]) -> None:
    """Start a run."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(planned.config, theirs, log_of(planned, logs)), daemon=False)
    process.start()
    theirs.close()  # so that its end is heard
    running[ours] = Process(planned, process)


def hear(connection: Connection, running: dict[Connection, Process], board: ProgressTable) -> Process | None:
    """What a run has to say: where it begins, a round that is done, how it ends. Given back is a run whose process is no more."""
    one = running[connection]
    label = one.planned.label
    try:
        kind, content = connection.recv()
    except (EOFError, OSError):
        one.process.join()
        return running.pop(connection)
    if kind == "begin":
        board.begin(label, *content)
        one.shown, one.done = True, content[1]
    elif kind == "row":
        board.advance(label, content)
        one.done = int(content["round"])
    else:
        one.error = content
    return None


def conclude(one: Process, board: ProgressTable, standing: str) -> str | None:
    """Say how a run has ended, and return why it failed, if it did."""
    code, label = one.process.exitcode, one.planned.label
    why = f"{one.error} (signal {-code})" if one.error is not None and code is not None and code < 0 else one.error
    if not one.shown:
        board.begin(label, num_rounds(one.planned.config), 0)
    took = timedelta(seconds=round(time.monotonic() - one.began))
    board.end(label, f"done in {took} ({standing})" if why is None else f"FAILED: {why} ({standing})")
    return why


def end_all(processes: Sequence[BaseProcess]) -> None:
    """Ask processes to end, and end those that do not."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()


def log_of(planned: PlannedRun, logs: Path) -> Path:
    """The file of what a run prints."""
    return logs / (re.sub(r"[^\w.+]+", "_", planned.label).strip("_") + ".txt")
