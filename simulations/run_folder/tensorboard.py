"""TensorBoard while a run goes on: the rows of its files as events in the run folder's ``tensorboard``."""

import csv
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.errors import require
from simulations.run_folder.observers import RunObserver, SaveCheckpoint

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def check_tensorboard(wanted: bool) -> None:
    """Refuse events where the package that writes them is missing.

    Raises:
        ConfigError: ``wanted`` is true, and the package ``tensorboard`` is not installed.
    """
    there = not wanted or find_spec("tensorboard") is not None
    require(there, "tensorboard", "must be false without the package (pip install 'fedkd[tensorboard]')", wanted)


class EventWriter(RunObserver):
    """Writes every number of ``metrics.csv`` and ``generator.csv`` as a scalar at its round. The class names the scalar of a class.

    Raises:
        ConfigError: the package ``tensorboard`` is not installed.
    """

    def __init__(self) -> None:
        check_tensorboard(True)
        self._writer: SummaryWriter | None = None
        self._folder = Path()

    def begin(self, folder: Path, first: int) -> None:
        """Open the events. Those that an interrupted run has written from round ``first`` on are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def round(
        self, number: int, metrics: Mapping[str, Any], clients: Sequence[Mapping[str, Any]], save: SaveCheckpoint | None = None
    ) -> None:
        """Write a round."""
        assert self._writer is not None, "the run has begun"
        for name, value in metrics.items():
            if name not in ("round", "epoch"):
                self._writer.add_scalar(name, value, number)
        for row in self._diagnosis(number):
            for name, value in row.items():
                if name not in ("round", "class") and value != "":
                    self._writer.add_scalar(f"generator/{name}/class_{int(row['class']):02d}", float(value), number)
        self._writer.flush()

    def end(self, error: Exception | None) -> None:
        """Close the events."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _diagnosis(self, number: int) -> list[dict[str, str]]:
        """The rows of ``generator.csv`` of a round."""
        path = self._folder / "generator.csv"
        if not path.is_file():
            return []
        with open(path, newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if row["round"] == str(number)]
