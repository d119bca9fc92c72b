"""Progress of runs on the terminal, and the result of a run in one line."""

import csv
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fedkd.training.step_counter import StepCount

ACCURACIES = (("global", "global_test_accuracy"), ("local", "local_test_accuracy"), ("test", "test_accuracy"))
"""Labels of the accuracies in a line of progress, and their columns."""


class RunProgress(Protocol):
    """The progress of one run."""

    def advance(self, row: Mapping[str, float]) -> None:
        """Show a finished round, given as its row of ``metrics.csv``."""

    def server_steps(self, server_round: int, count: StepCount) -> None:
        """Show how far the server's own training is in a round."""


SERVER_LINES = 10.0
"""Seconds between two plain lines on the server's own training."""

MakeProgress = Callable[[DictConfig, int], AbstractContextManager[RunProgress]]
"""``(config, first round) -> progress``."""


def configure_logging() -> None:
    """Print the library's log messages of level INFO on standard error."""
    logger = logging.getLogger("fedkd")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.setLevel(logging.INFO)
        logger.propagate = False


class ProgressTable:
    """The progress of several runs on standard error: one moving line per run, with accuracies and the remaining time.

    While a server trains, the line has its steps and the time that the others take. Without a terminal each run prints ten plain lines
    instead, and one every ten seconds while its server trains. With ``quiet`` it prints only the line of its result.

    Args:
        enabled: whether anything is printed.
        quiet: print plain lines on a terminal too, one per run.
        unit: ``round`` or ``epoch``, the column that counts progress.
    """

    def __init__(self, enabled: bool = True, quiet: bool = False, unit: str = "round") -> None:
        console = Console(stderr=True)
        self._quiet = quiet
        self._enabled, self._unit, self._live = enabled, unit, console.is_terminal and enabled and not quiet
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[score]}"),
            TextColumn("{task.fields[server]}"),
            TimeRemainingColumn(),
        )
        self._lines = RichProgress(*columns, console=console, disable=not self._live)
        self._tasks: dict[str, tuple[TaskID, int, int, float]] = {}
        self._overall: TaskID | None = None
        self._last_server_line = 0.0

    def __enter__(self) -> Self:
        self._lines.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lines.stop()

    def begin(self, label: str, total: int, done: int) -> None:
        """Add a run.

        Args:
            label: name of the run.
            total: number of rounds or epochs.
            done: number of those that are done already.
        """
        task = self._lines.add_task(escape(label), total=total, completed=done, score="", server="")
        self._tasks[label] = task, total, done, time.monotonic()

    def overall(self, done: int, total: int) -> None:
        """On a terminal, show how many of all runs are finished, and the remaining time for all."""
        if self._overall is None:
            self._overall = self._lines.add_task("all", total=total, score="", server="")
        self._lines.update(self._overall, completed=done, total=total)

    def advance(self, label: str, row: Mapping[str, float]) -> None:
        """Show a finished round of a run.

        Args:
            label: name of the run.
            row: the round as a row of ``metrics.csv``, with accuracies if the round was evaluated.
        """
        task, total, done, begin = self._tasks[label]
        number = int(row[self._unit])
        accuracies = [f"{name} {row[column]:.3f}" for name, column in ACCURACIES if column in row]
        self._lines.update(task, completed=number, server="")
        if accuracies:
            self._lines.update(task, score=", ".join(accuracies))
        if not self._quiet and (number % max(1, total // 10) == 0 or number == total):
            remaining = (time.monotonic() - begin) / max(1, number - done) * (total - number)
            words = [*accuracies, f"{timedelta(seconds=round(remaining))} left"] if number < total else accuracies
            self._print(f"{label}: {self._unit} {number}/{total} {', '.join(words)}")

    def server_steps(self, label: str, server_round: int, count: StepCount) -> None:
        """Show how far the server's own training of a run is.

        Args:
            label: name of the run.
            server_round: the round.
            count: the steps of this round.
        """
        task, total, _, begin = self._tasks[label]
        words = f"server step {count.done}" + (f"/{count.total}" if count.total else "")
        if count.seconds_left is not None:
            words += f", {timedelta(seconds=round(count.seconds_left))} left"
        self._lines.update(task, server=words)
        now = time.monotonic()
        if not self._quiet and count.done != count.total and now - max(begin, self._last_server_line) >= SERVER_LINES:
            self._last_server_line = now
            self._print(f"{label}: {self._unit} {server_round}/{total}, {words} in this {self._unit}")

    def end(self, label: str, result: str) -> None:
        """Remove a run, and print its result."""
        self._lines.remove_task(self._tasks.pop(label)[0])
        if self._live:
            self._lines.refresh()
            self._lines.print(escape(f"{label}: {result}"), highlight=False, soft_wrap=True)
        self._print(f"{label}: {result}")

    def _print(self, line: str) -> None:
        if self._enabled and not self._live:
            print(line, file=sys.stderr, flush=True)


class ProgressBar:
    """The progress of one run, see :class:`ProgressTable`.

    Args:
        label: name of the run.
        total: number of rounds or epochs.
        done: number of those that are done already.
        enabled: whether anything is printed.
        unit: ``round`` or ``epoch``, the column that counts progress.
    """

    def __init__(self, label: str, total: int, done: int, enabled: bool, unit: str) -> None:
        self._label, self._table = label, ProgressTable(enabled, unit=unit)
        self._table.begin(label, total, done)

    def __enter__(self) -> Self:
        self._table.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._table.__exit__(kind, error, trace)

    def advance(self, row: Mapping[str, float]) -> None:
        """Show a finished round, given as its row of ``metrics.csv``."""
        self._table.advance(self._label, row)

    def server_steps(self, server_round: int, count: StepCount) -> None:
        """Show how far the server's own training is in a round."""
        self._table.server_steps(self._label, server_round, count)


def round_progress(config: DictConfig, first_round: int) -> ProgressBar:
    """The progress of a federated run.

    Args:
        config: the configuration of the run.
        first_round: the first round that is computed now.
    """
    strategy = config.choices.get("strategy", config.strategy["_target_"].rpartition(".")[2])
    label = f"{strategy} on {config.choices.get('data', 'data')}, seed {config.seed}"
    return ProgressBar(label, config.rounds, first_round - 1, config.progress, "round")


def summary_line(folder: Path) -> str:
    """The result of a run: its last round, and both accuracies, of the last evaluated round and as the mean of the last ten.

    Args:
        folder: the run folder with ``metrics.csv``.
    """
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    words = []
    for label, column in (("global test accuracy", "global_test_accuracy"), ("local test accuracy", "local_test_accuracy")):
        values = [float(row[column]) for row in rows if row[column] != ""][-10:]
        if values:
            words.append(f"{label} {values[-1]:.4f} (last {len(values)}: {sum(values) / len(values):.4f})")
    return f"round {rows[-1]['round']}: {', '.join(words)}"
