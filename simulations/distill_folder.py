"""The folder of a distillation: what it leaves behind, and what it needs to go on."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from fedkd.checkpoint import Checkpoint, read_checkpoint, read_header, write_atomically, write_checkpoint
from fedkd.distillation import Progress
from fedkd.types import Tensors
from simulations.record import append, cut, environment, header_of, table, widen

COLUMNS = ("epoch", "accuracy", "loss", "train_loss", "lr", "seconds_train", "seconds_evaluate", "travel")


class DistillFolder:
    """``<output>/<name>/<hash>/``, locked for as long as this object lives.

    Raises:
        ValueError: the folder cannot be written, is in use, or holds a checkpoint of another configuration.
    """

    def __init__(self, config: DictConfig, key: str) -> None:
        self.config, self.key = config, key
        self.path = Path(config.output).expanduser().absolute() / config.name / key
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"output must hold run folders that no other process is writing, got {self.path}, which is in use") from None
        except OSError as error:
            raise ValueError(f"output must be a folder that can be written, got {config.output!r}: {error}") from error
        self.header = read_header(self.path)
        if self.header is not None and self.header["config"] != key:
            raise ValueError(
                f"output must hold checkpoints of this very configuration ({key}), got one of {self.header['config']} in {self.path}"
            )

    @property
    def finished(self) -> bool:
        """All epochs are done."""
        return self.header is not None and bool(self.header["finished"])

    def begin(self) -> Progress | None:
        """Write what describes the training, cut what lies behind the checkpoint, and give where it stands if there is one."""
        done = -1 if self.header is None else int(self.header["round"])
        for name in ("metrics.csv", "flow.csv"):
            cut(self.path / name, done)
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True).encode())
        write_atomically(self.path / "environment.json", (json.dumps(environment(self.config), indent=1) + "\n").encode())
        return None if self.header is None else stood(self.path)

    def row(self, values: Mapping[str, float]) -> None:
        """One row of ``metrics.csv``, flushed; columns that no row has had so far are added to all."""
        path = self.path / "metrics.csv"
        header = header_of(path) or list(COLUMNS)
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

    def release(self) -> None:
        """Let others have the folder."""
        self._lock.release()


def stood(folder: Path) -> Progress:
    """Where the training in ``folder`` stands."""
    last = read_checkpoint(folder)
    return Progress(last.round, last.state["learner"], last.state.get("optimizer", {}), last.state.get("source", {}))


def trained(folder: Path) -> Tensors:
    """What was trained in ``folder``: the student's tensors, and those of the method's modules."""
    return stood(folder).tensors


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``."""
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))
