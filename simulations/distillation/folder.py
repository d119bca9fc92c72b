"""The run folder of a distillation: the files that it writes, and those that a restart reads."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedkd.checkpoint import LAST, Checkpoint, read_checkpoint, write_checkpoint
from fedkd.distillation.student_training import Progress
from fedkd.files import write_atomically
from fedkd.types import Tensors
from simulations.run_folder.completeness import check_distillation_rows, write_row_counts
from simulations.run_folder.csv_rows import append, cut, header_of, table, widen
from simulations.run_folder.folder import LockedFolder
from simulations.run_folder.metric_names import DISTILLATION_COLUMNS

LAYER_INFORMATION_COLUMNS = ("epoch", "network", "layer", "information", "binned")
"""Columns of ``flow.csv``."""


class DistillationFolder(LockedFolder):
    """The run folder of a distillation, locked while this object lives.

    Args:
        config: the resolved configuration.
        key: the hash of the training.
        wait: wait while another process trains in the folder, instead of raising an error.
        prior: the training is a part of another one, see :class:`LockedFolder`.

    Raises:
        ConfigError: see :class:`LockedFolder`.
    """

    def __init__(self, config: DictConfig, key: str, wait: bool = False, prior: bool = False) -> None:
        super().__init__(config, key, wait, prior)

    def check_rows(self, done: int) -> None:
        """See :class:`LockedFolder`."""
        check_distillation_rows(self.path, done)

    def begin(self, digests: Mapping[str, str]) -> Progress | None:
        """Write the files that describe the training and remove all rows after the last checkpoint.

        Args:
            digests: hashes of the content of the data.

        Returns:
            The training at the last checkpoint. None if there is no checkpoint.
        """
        progress = None if self.header is None else read_progress(self.path)
        for name in ("metrics.csv", "flow.csv"):
            cut(self.path / name, -1 if progress is None else progress.epoch)
        self.describe(digests)
        return progress

    def append_row(self, values: Mapping[str, float]) -> None:
        """Append a row to ``metrics.csv`` and flush it. New columns are added to all rows."""
        path = self.path / "metrics.csv"
        header = header_of(path) or list(DISTILLATION_COLUMNS)
        if added := [name for name in values if name not in header]:
            header = [*header, *added]
            if path.exists():
                widen(path, header)
        append(path, header, [values])

    def append_layer_information(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to ``flow.csv`` and flush them."""
        append(self.path / "flow.csv", LAYER_INFORMATION_COLUMNS, list(rows))

    def write_models(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write ``models.csv``, one row for each network."""
        write_atomically(self.path / "models.csv", table(list(rows[0]), rows, titled=True).encode())

    def model_columns(self) -> list[str]:
        """The columns of ``models.csv``. Empty if there is no such file."""
        return header_of(self.path / "models.csv") or []

    def write_checkpoint(self, progress: Progress, name: str = "checkpoint") -> None:
        """Write the state of the training atomically, as ``<name>.safetensors`` and ``<name>.json``."""
        state = {"learner": progress.tensors, "optimizer": progress.optimizer, "source": progress.source_state}
        if name == LAST:
            write_row_counts(self.path, progress.epoch)
        write_checkpoint(self.path, Checkpoint(progress.epoch, self.key, state, {}), self.config.epochs, name)


def read_progress(folder: Path) -> Progress:
    """The training in ``folder`` at its last checkpoint."""
    last = read_checkpoint(folder)
    return Progress(last.round, last.state["learner"], last.state.get("optimizer", {}), last.state.get("source", {}))


def read_trained_tensors(folder: Path) -> Tensors:
    """The tensors of the student and of the method's modules at the last checkpoint in ``folder``."""
    return read_progress(folder).tensors


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``, values as text."""
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))
