"""A sweep: several runs at a time, each in its own process, with one line of progress per run.

A run that fails does not stop the others. All state is in the run folders, so a sweep that was killed resumes from them.
"""

import io
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

from fedkd.training.step_counter import StepCount
from simulations.distillation.runner import run_distillation
from simulations.experiments.plan import PlannedRun
from simulations.federation.runner import run_federation
from simulations.overrides import explain
from simulations.progress import ProgressTable
from simulations.run_folder.observers import RunObserver, SaveCheckpoint


class RoundSender:
    """The progress of a federated run, sent to the process that watches."""

    def __init__(self, connection: Connection, total: int, done: int) -> None:
        self._connection = connection
        connection.send(("begin", (total, done)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to restore."""

    def advance(self, row: Mapping[str, float]) -> None:
        """Send the row of a round."""
        self._connection.send(("row", dict(row)))

    def server_steps(self, server_round: int, count: StepCount) -> None:
        """Send the steps of the server's own training."""
        self._connection.send(("server", (server_round, count)))


class EpochSender(RunObserver):
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides when it ends
    signal.signal(signal.SIGTERM, interrupt)
    with open(log, "w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)

    def shown(config: DictConfig, first: int) -> AbstractContextManager:
        return RoundSender(connection, config.rounds, first - 1)

    try:
        if "distiller" in config:
            run_distillation(config, observers=[EpochSender(connection, config.epochs)])
        else:
            run_federation(config, make_progress=shown)
        connection.send(("end", None))
    except KeyboardInterrupt:
        connection.send(("end", "interrupted"))
    except BaseException as error:
        connection.send(("end", one_line(error)))
        raise


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks. Of a traceback, only the last line: the log holds the rest."""
    text = " ".join((explain(error) if isinstance(error, Exception) else str(error)).split())
    return TRACEBACK.sub("", text) or type(error).__name__


def interrupt(number: int, frame: object) -> None:
    """Interrupt the run, as Ctrl-C does."""
    raise KeyboardInterrupt


def die_with_parent() -> None:
    """Kill this process when its parent process ends, however the parent ends."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


IMPORTED = ("simulations.experiments.sweep", "torch._dynamo", "torchvision")
"""Modules that every run needs. The fork server imports them once."""


PATIENCE = 15.0
"""Seconds that a process has to end after it was asked to."""


@dataclass
class Process:
    """A run in progress."""

    planned: PlannedRun
    process: BaseProcess
    shown: bool = False
    done: int = 0
    error: str | None = "its process ended before the run did"
    began: float = field(default_factory=time.monotonic)


def starter() -> multiprocessing.context.BaseContext:
    """The multiprocessing context: a fork server that has imported everything, or ``spawn`` where there is none."""
    able = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if able else "spawn")
    if able:
        context.set_forkserver_preload(list(IMPORTED))
    return context


def ready() -> None:
    """Start the fork server, so that its imports begin before the first run."""
    if starter().get_start_method() == "forkserver":
        forkserver.ensure_running()


def sweep(runs: Sequence[PlannedRun], at_once: int, logs: Path, board: ProgressTable) -> dict[str, str]:
    """Execute runs, several at a time.

    Args:
        runs: different runs.
        at_once: runs at a time, >= 1.
        logs: the folder of the logs, one file per run.
        board: shows the progress.

    Returns:
        The reasons of runs that failed, by label.
    """
    context, waiting, ended, began = starter(), deque(runs), 0, time.monotonic()
    failed: dict[str, str] = {}
    running: dict[Connection, Process] = {}
    rounds, ended_rounds = sum(num_rounds(run.config) for run in runs), 0
    logs.mkdir(parents=True, exist_ok=True)
    try:
        with board:
            while waiting or running:
                while waiting and len(running) < at_once:
                    begin(context, waiting.popleft(), logs, running)
                board.overall(ended_rounds + sum(one.done for one in running.values()), rounds)
                for connection in [one for one in wait(list(running)) if isinstance(one, Connection)]:
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
    arguments = (planned.config, theirs, log_of(planned, logs))
    process = context.Process(target=work, args=arguments, daemon=False)  # type: ignore[attr-defined]  # every context has it
    process.start()
    theirs.close()  # so that the end of the process closes the connection
    running[ours] = Process(planned, process)


def hear(connection: Connection, running: dict[Connection, Process], board: ProgressTable) -> Process | None:
    """Read one message of a run: its begin, a row, steps of its server, or its end. Returns the run if its process has ended."""
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
    elif kind == "server":
        board.server_steps(label, *content)
    else:
        one.error = content
    return None


def conclude(one: Process, board: ProgressTable, standing: str) -> str | None:
    """Show how a run has ended, and return the reason if it failed."""
    code, label = one.process.exitcode, one.planned.label
    why = f"{one.error} (signal {-code})" if one.error is not None and code is not None and code < 0 else one.error
    if not one.shown:
        board.begin(label, num_rounds(one.planned.config), 0)
    took = timedelta(seconds=round(time.monotonic() - one.began))
    board.end(label, f"done in {took} ({standing})" if why is None else f"FAILED: {why} ({standing})")
    return why


def end_all(processes: Sequence[BaseProcess]) -> None:
    """Ask processes to end, and kill those that do not."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()


def log_of(planned: PlannedRun, logs: Path) -> Path:
    """The log file of a run."""
    return logs / (re.sub(r"[^\w.+]+", "_", planned.label).strip("_") + ".txt")
