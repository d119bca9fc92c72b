"""Progress of runs on the terminal, and the result of one in a line."""

import csv
import logging
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Rich


def configure_logging() -> None:
    """Let the library say on standard error what takes time or was decided: images decoded, partitions drawn again."""
    logger = logging.getLogger("fedkd")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.setLevel(logging.INFO)
        logger.propagate = False


class ProgressTable:
    """A line on standard error for everything under way: what is done, accuracy, time left.

    Where that is no terminal, or should not be used as one: a plain line every tenth of it.

    Args:
        shown: anything at all.
        quiet: plain lines on a terminal too, as for logs.
        unit: ``round`` or ``epoch``, the column that counts what is done.
    """

    def __init__(self, shown: bool = True, quiet: bool = False, unit: str = "round") -> None:
        console = Console(stderr=True)
        self._shown, self._unit, self._live = shown, unit, console.is_terminal and shown and not quiet
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[score]}"),
            TimeRemainingColumn(),
        )
        self._lines = Rich(*columns, console=console, disable=not self._live)
        self._tasks: dict[str, tuple[TaskID, int, int, float]] = {}
        self._overall: TaskID | None = None

    def __enter__(self) -> Self:
        self._lines.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lines.stop()

    def begin(self, label: str, total: int, done: int) -> None:
        """A line for ``label``, of which ``done`` of ``total`` are done already."""
        task = self._lines.add_task(escape(label), total=total, completed=done, score="")
        self._tasks[label] = task, total, done, time.monotonic()

    def overall(self, done: int, total: int) -> None:
        """On a terminal, a line for all together: so many of ``total`` are done, and the time left for all."""
        if self._overall is None:
            self._overall = self._lines.add_task("all", total=total, score="")
        self._lines.update(self._overall, completed=done, total=total)

    def advance(self, label: str, row: Mapping[str, float]) -> None:
        """Show one that is finished, with its accuracies where ``row`` has them."""
        task, total, done, began = self._tasks[label]
        shown = [
            f"{name} {row[key]:.3f}"
            for name, key in (("global", "global_test_accuracy"), ("local", "local_test_accuracy"), ("test", "test_accuracy"))
            if key in row
        ]
        number = int(row[self._unit])
        self._lines.update(task, completed=number, **({"score": ", ".join(shown)} if shown else {}))
        if number % max(1, total // 10) == 0 or number == total:
            left = (time.monotonic() - began) / max(1, number - done) * (total - number)
            shown += [f"{timedelta(seconds=round(left))} left"] if number < total else []
            self._say(f"{label}: {self._unit} {number}/{total} {', '.join(shown)}")

    def end(self, label: str, words: str) -> None:
        """Take the line away, and leave ``words`` of it."""
        self._lines.remove_task(self._tasks.pop(label)[0])
        if self._live:
            self._lines.refresh()
            self._lines.print(escape(f"{label}: {words}"), highlight=False, soft_wrap=True)
        self._say(f"{label}: {words}")

    def _say(self, line: str) -> None:
        if self._shown and not self._live:
            print(line, file=sys.stderr, flush=True)


class ProgressBar:
    """The :class:`ProgressTable` of one thing alone.

    Args:
        label: what is being done.
        total: rounds or epochs.
        done: so many are already.
        shown: anything at all.
        unit: ``round`` or ``epoch``, the column that counts them.
    """

    def __init__(self, label: str, total: int, done: int, shown: bool, unit: str) -> None:
        self._label, self._board = label, ProgressTable(shown, unit=unit)
        self._board.begin(label, total, done)

    def __enter__(self) -> Self:
        self._board.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._board.__exit__(kind, error, trace)

    def advance(self, row: Mapping[str, float]) -> None:
        """Show one that is finished."""
        self._board.advance(self._label, row)


def round_progress(config: DictConfig, first: int) -> ProgressBar:
    """The progress of a federated run, which goes on with round ``first``."""
    strategy = config.choices.get("strategy", config.strategy["_target_"].rpartition(".")[2])
    label = f"{strategy} on {config.choices.get('data', 'data')}, seed {config.seed}"
    return ProgressBar(label, config.rounds, first - 1, config.progress, "round")


def summary_line(folder: Path) -> str:
    """The headline of a run: its last round and the mean of the last ten evaluated rounds, on both metrics."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    words = []
    for title, column in (("global test accuracy", "global_test_accuracy"), ("local test accuracy", "local_test_accuracy")):
        values = [float(row[column]) for row in rows if row[column] != ""][-10:]
        if values:
            words.append(f"{title} {values[-1]:.4f} (last {len(values)}: {sum(values) / len(values):.4f})")
    return f"round {rows[-1]['round']}: {', '.join(words)}"
