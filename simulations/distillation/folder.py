"""The folder of a distillation: what it leaves behind, and what it needs to go on."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedkd.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fedkd.distillation.student_training import Progress
from fedkd.files import write_atomically
from fedkd.types import Tensors
from simulations.run_folder.csv_rows import append, cut, header_of, table, widen
from simulations.run_folder.environment import environment
from simulations.run_folder.folder import LockedFolder
from simulations.run_folder.metric_names import DISTILLATION_COLUMNS


class DistillationFolder(LockedFolder):
    """The folder of a distillation."""

    def __init__(self, config: DictConfig, key: str, patient: bool = False) -> None:
        super().__init__(config, key, patient)
        self.config, self.key = config, key

    def begin(self) -> Progress | None:
        """Write what describes the training, cut what lies behind the checkpoint, and give where it stands if there is one."""
        done = -1 if self.header is None else int(self.header["round"])
        for name in ("metrics.csv", "flow.csv"):
            cut(self.path / name, done)
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True).encode())
        write_atomically(self.path / "environment.json", (json.dumps(environment(self.config), indent=1) + "\n").encode())
        return None if self.header is None else read_progress(self.path)

    def row(self, values: Mapping[str, float]) -> None:
        """One row of ``metrics.csv``, flushed; columns that no row has had so far are added to all."""
        path = self.path / "metrics.csv"
        header = header_of(path) or list(DISTILLATION_COLUMNS)
        if more := [name for name in values if name not in header]:
            header = [*header, *more]
            if path.exists():
                widen(path, header)
        append(path, header, [values])

    def flow(self, rows: list[Mapping[str, float]]) -> None:
        """Rows of ``flow.csv``, flushed."""
        append(self.path / "flow.csv", ("epoch", "network", "layer", "information", "binned"), rows)

    def models(self, rows: list[Mapping[str, object]]) -> None:
        """``models.csv``: the networks side by side."""
        write_atomically(self.path / "models.csv", table(list(rows[0]), rows, titled=True).encode())

    def models_known(self) -> list[str]:
        """The columns of ``models.csv``."""
        return header_of(self.path / "models.csv") or []

    def checkpoint(self, progress: Progress) -> None:
        """Where the training stands, atomically."""
        state = {"learner": progress.tensors, "optimizer": progress.optimizer, "source": progress.memory}
        write_checkpoint(self.path, Checkpoint(progress.epoch, self.key, state, {}), self.config.epochs)


def read_progress(folder: Path) -> Progress:
    """Where the training in ``folder`` stands."""
    last = read_checkpoint(folder)
    return Progress(last.round, last.state["learner"], last.state.get("optimizer", {}), last.state.get("source", {}))


def read_trained_tensors(folder: Path) -> Tensors:
    """What was trained in ``folder``: the student's tensors, and those of the method's modules."""
    return read_progress(folder).tensors


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``."""
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))
