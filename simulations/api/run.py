"""One run as its folder shows it: configuration, metrics, partition, and the trained model."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedkd.errors import RunFolderError, one_line
from fedkd.files import SCHEMA_VERSION
from simulations.reports.distillation_groups import read_distillation
from simulations.reports.summary import configures_clock, summarize, without_clock
from simulations.run_folder.csv_rows import clients_file, unescaped
from simulations.run_folder.metric_names import CLIENT_COLUMNS, COLUMNS, DISTILLATION_COLUMNS
from simulations.run_folder.reader import read_run
from simulations.run_folder.stored_config import configuration

if TYPE_CHECKING:
    from torch import nn

CHECKPOINTS = {"last": "checkpoint", "best": "best_checkpoint"}
"""Names of the checkpoints of which :meth:`Run.model` takes the model: the last one, and that of the callback ``BestCheckpoint``."""


@dataclass(frozen=True)
class Run:
    """A federated run or a distillation. It reads its folder when it is asked, so that an unfinished run shows its rounds so far.

    Args:
        path: the run folder.

    Raises:
        RunFolderError: ``path`` is not a run folder.
    """

    path: Path
    _save: Callable[[str], None] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path).expanduser().absolute())
        if not (self.path / "config.yaml").is_file():
            raise RunFolderError(f"path must be a run folder (it holds config.yaml), got {str(self.path)!r}")

    @cached_property
    def _values(self) -> dict[str, Any]:
        """The configuration as plain values, read once: it never changes."""
        try:
            values = configuration(self.path / "config.yaml")
            if not isinstance(values, dict) or not {"strategy", "distiller"} & set(values) or not isinstance(values["seed"], int):
                raise RunFolderError("it must hold seed, and strategy or distiller")
        except (OSError, ValueError, KeyError, TypeError, YAMLError, OmegaConfBaseException) as error:
            raise RunFolderError(f"{self.path / 'config.yaml'} must be the configuration of a run: {one_line(error)}") from error
        return values

    @property
    def config(self) -> DictConfig:
        """The configuration, resolved. It is a copy."""
        return OmegaConf.create(self._values)

    @property
    def seed(self) -> int:
        """The root of the run's randomness."""
        return self._values["seed"]

    @property
    def kind(self) -> Literal["federated", "distillation"]:
        """What the run is."""
        return "distillation" if "distiller" in self._values else "federated"

    @property
    def name(self) -> str:
        """The option that was chosen as the strategy, or as the distillation method."""
        part = "distiller" if self.kind == "distillation" else "strategy"
        target = str(self._values[part].get("_target_", part)).rpartition(".")[2].lower()
        return (self._values.get("choices") or {}).get(part) or target

    @property
    def finished(self) -> bool:
        """Whether all rounds (or epochs) are done.

        Raises:
            RunFolderError: ``checkpoint.json`` cannot be read, or another version of fedkd has written it.
        """
        return bool(self._checkpoint().get("finished", False))

    @property
    def round(self) -> int:
        """The round (or epoch) of the last checkpoint; 0 before the first one."""
        return int(self._checkpoint().get("round", 0))

    def _checkpoint(self) -> dict[str, Any]:
        """``checkpoint.json``; empty before the first checkpoint."""
        path = self.path / "checkpoint.json"
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            schema = found["schema"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{path} must be what a run has written: {one_line(error)}") from error
        if schema != SCHEMA_VERSION:
            raise RunFolderError(
                f"{self.path} must be of schema version {SCHEMA_VERSION}, got {schema}; run it again in another output folder"
            )
        return found

    @property
    def metrics(self) -> pd.DataFrame:
        """``metrics.csv``: a row per round (or epoch). Accuracies are in 0..1; cells of rounds without an evaluation are NaN."""
        return self._table(self.path / "metrics.csv", COLUMNS if self.kind == "federated" else DISTILLATION_COLUMNS)

    @property
    def clients(self) -> pd.DataFrame:
        """``clients.csv`` or ``clients.csv.gz``: a row per client and round. Empty for a distillation."""
        return self._table(clients_file(self.path), CLIENT_COLUMNS)

    @property
    def generator(self) -> pd.DataFrame | None:
        """``generator.csv``: diagnostics of the server's generator by round and class. None without ``generator_diagnostics_every``."""
        return self._table(self.path / "generator.csv", ()) if (self.path / "generator.csv").is_file() else None

    def _table(self, path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
        """A CSV file of the folder; without rows where there is none yet."""
        if not path.is_file() or path.stat().st_size == 0:
            return pd.DataFrame(columns=list(columns))
        try:
            table = pd.read_csv(path)
        except (OSError, ValueError, EOFError, zlib.error) as error:
            raise RunFolderError(f"{path} must be a table of a run: {one_line(error)}") from error
        for column in table.select_dtypes(exclude="number"):
            table[column] = table[column].map(unescaped)
        return table

    @property
    def label_counts(self) -> np.ndarray:
        """Training examples by client and class, [num_clients, num_classes].

        Raises:
            RunFolderError: the run is a distillation, or ``partition.npz`` is missing or corrupt.
        """
        if self.kind == "distillation":
            raise RunFolderError(f"label_counts must be asked of a federated run; {self.path} is a distillation, which has no clients")
        try:
            with np.load(self.path / "partition.npz") as arrays:
                return arrays["counts"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise RunFolderError(f"{self.path / 'partition.npz'} must hold the array 'counts': {error}") from error

    def summary(self) -> dict[str, float]:
        """The run in numbers, of all rounds so far.

        Returns:
            Of a federated run: ``<accuracy>_final`` (last evaluated round) and ``<accuracy>_last10`` (mean of the last ten evaluated
            rounds, or of all where there are fewer) in 0..1, totals of bytes, medians of seconds per round, simulated seconds (NaN
            unless ``systems`` configures a clock). Of a distillation: ``test_accuracy_initial``,
            ``test_accuracy_final``, ``test_loss_final``, ``teacher_accuracy`` (NaN without a teacher).

        Raises:
            RunFolderError: no round has been evaluated.
        """
        metrics = self.metrics
        if self.kind == "federated":
            accuracies = ["global_test_accuracy", "local_test_accuracy"]
            if metrics.empty or not set(accuracies) <= set(metrics) or metrics[accuracies].isna().all(axis=None):
                raise RunFolderError(f"{self.path} has no evaluated round yet; run it again to continue")
            found = summarize(metrics)
            found = found if configures_clock(self._values.get("systems") or {}) else without_clock(found)
            return {name: float(value) for name, value in found.items()}
        scored = metrics[metrics["test_accuracy"].notna()] if "test_accuracy" in metrics else metrics[:0]
        if scored.empty:
            raise RunFolderError(f"{self.path} has no evaluated epoch yet; run it again to continue")
        first, last = scored.iloc[0], scored.iloc[-1]
        numbers = {
            "test_accuracy_initial": first["test_accuracy"],
            "test_accuracy_final": last["test_accuracy"],
            "test_loss_final": last["test_loss"],
        }
        numbers["teacher_accuracy"] = read_distillation(self.path).teacher if (self.path / "models.csv").is_file() else np.nan
        return {name: float(value) for name, value in numbers.items()}

    def model(self, client: int | None = None, which: Literal["last", "best"] = "last") -> "nn.Module":
        """The trained network, on the CPU and in eval mode.

        Args:
            client: None for the global model, or the student of a distillation. A number k in 0..num_clients-1 for the model that client k
                would use: its own parameters over those of the last broadcast.
            which: ``last`` takes the last checkpoint, ``best`` that of the callback ``BestCheckpoint``.

        Returns:
            The network. It maps images [B, channels, height, width], scaled as in the run, to a ``fedkd.types.Output`` with ``logits``
            [B, num_classes].

        Raises:
            RunFolderError: there is no such checkpoint or model.
        """
        from simulations.api.process_state import preserved_process_state
        from simulations.federation.trained_model import load_model

        if which not in CHECKPOINTS:
            raise RunFolderError(f"which must be last or best, got {which!r}")
        with preserved_process_state():
            return load_model(self.path, client, CHECKPOINTS[which])

    def check(self) -> None:
        """See that the files of the run can be read, all of them if it is finished.

        Raises:
            RunFolderError: one is missing or corrupt.
        """
        if self.finished and self.kind == "federated":
            read_run(self.path)
        elif self.finished:
            read_distillation(self.path)
        else:
            self._table(self.path / "metrics.csv", ())

    def __str__(self) -> str:
        rounds = self._values.get("rounds", self._values.get("epochs"))
        state = "finished" if self.finished else f"{self.round} of {rounds} {'epochs' if self.kind == 'distillation' else 'rounds'}"
        return f"{self.name}, seed {self.seed}, {state}: {self.path}"
