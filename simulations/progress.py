"""Progress of a run on the terminal, and its result in a line."""

import csv
import logging
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Rich


def narrate() -> None:
    """Let the library say on standard error what takes time or was decided: images decoded, partitions drawn again."""
    logger = logging.getLogger("fedkd")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.setLevel(logging.INFO)
        logger.propagate = False


class Bar:
    """One line on standard error: what is done, accuracy, time left. Where that is no terminal: a plain line every tenth of it.

    Args:
        label: what is being done.
        total: rounds or epochs.
        done: so many are already.
        shown: anything at all.
        unit: ``round`` or ``epoch``, the column that counts them.
    """

    def __init__(self, label: str, total: int, done: int, shown: bool, unit: str) -> None:
        self._label, self._total, self._shown, self._unit = label, total, shown, unit
        console = Console(stderr=True)
        self._live = console.is_terminal and self._shown
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[score]}"),
            TimeRemainingColumn(),
        )
        self._bar = Rich(*columns, console=console, disable=not self._live)
        self._task = self._bar.add_task(self._label, total=total, completed=done, score="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, row: dict[str, float]) -> None:
        """Show one that is finished."""
        shown = [f"{name} {row[key]:.3f}" for name, key in (("accuracy", "accuracy"), ("own labels", "accuracy_own_labels")) if key in row]
        number = int(row[self._unit])
        self._bar.update(self._task, completed=number, **({"score": ", ".join(shown)} if shown else {}))
        if self._shown and not self._live and (number % max(1, self._total // 10) == 0 or number == self._total):
            print(f"{self._label}: {self._unit} {number}/{self._total} {', '.join(shown)}", file=sys.stderr, flush=True)


def of_rounds(config: DictConfig, first: int) -> Bar:
    """The progress of a federated run, which goes on with round ``first``."""
    strategy = config.choices.get("strategy", config.strategy["_target_"].rpartition(".")[2])
    label = f"{strategy} on {config.choices.get('data', 'data')}, seed {config.seed}"
    return Bar(label, config.rounds, first - 1, config.progress, "round")


def summarise(folder: Path) -> str:
    """The headline of a run: its last round and the mean of the last ten evaluated rounds, on both metrics."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    words = []
    for title, column in (("accuracy", "accuracy"), ("on own labels", "accuracy_own_labels")):
        values = [float(row[column]) for row in rows if row[column] != ""][-10:]
        if values:
            words.append(f"{title} {values[-1]:.4f} (mean of the last {len(values)}: {sum(values) / len(values):.4f})")
    return f"round {rows[-1]['round']}: {', '.join(words)}"
