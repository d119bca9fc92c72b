"""The run folder: the files that a run writes, and the lock that keeps a second process out."""

import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from fedkd.checkpoint import LAST, PREVIOUS, Checkpoint, read_checkpoint, read_header, write_checkpoint, write_header
from fedkd.client_states import check_files, remove_unused
from fedkd.config.build import has_drift
from fedkd.errors import ConfigError, RunFolderError
from fedkd.files import CLIENT_STATES, sync_folder, write_atomically
from fedkd.types import State
from simulations.run_folder.completeness import check_federated_rows, check_row_counts, write_row_counts
from simulations.run_folder.csv_rows import append, clients_file, cut, header_of, widen
from simulations.run_folder.environment import current_commit, environment, read_commit, record_workers, write_tuned_params
from simulations.run_folder.metric_names import CLIENT_COLUMNS, COLUMNS, GENERATOR_COLUMNS, LATENT_COLUMNS, SHIFT_COLUMNS, TASK_COLUMNS
from simulations.run_folder.series import begin_from_series
from simulations.run_folder.source_code import check_code, earlier_packages, listed

REPLACED = ".replaced"
"""Folder beside run folders, with earlier results of runs that ``force`` has begun anew. Lists and reports pass it over."""


class LockedFolder(ABC):
    """The folder ``<output>/<name>/<hash>/``, locked as long as this object exists.

    Args:
        config: the resolved configuration.
        key: the hash.
        patient: wait for another process that writes to the folder.
        prior: the run is a part of another one, which needs its result: ``force`` runs it again only where its code has changed.

    Attributes:
        changed: the files whose code is not that of the run in the folder, by ``environment.json``.

    Raises:
        ConfigError: the folder cannot be written, is in use, holds a checkpoint of another configuration, or was made by other code.
    """

    def __init__(self, config: DictConfig, key: str, patient: bool = False, prior: bool = False) -> None:
        self.config, self.key = config, key
        self.path = Path(config.output).expanduser().absolute() / config.name / key
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            sync_folder(self.path.parent)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=-1 if patient else 0)
        except Timeout:
            raise ConfigError(f"output must hold run folders that no other process is writing, got {self.path}, which is in use") from None
        except OSError as error:
            raise ConfigError(f"output must be a folder that can be written, got {config.output!r}: {error}") from error
        self.changed: list[str] = []
        try:
            self._open(prior)
        except BaseException:
            self.release()
            raise

    def _open(self, prior: bool) -> None:
        """Read the newest sound checkpoint and compare the code."""
        if self.config.force and not prior:
            self._set_aside()
        self.header = self._newest()
        self.changed = [] if self.header is None else check_code(self.path, self.config)
        if self.config.force and self.changed:
            self._set_aside()
        if self.header is not None and not header_matches(self.path, self.header):  # the process was killed between the two files
            write_header(self.path, self.header)

    def _newest(self) -> dict[str, Any] | None:
        """The header of the last checkpoint, or of the one before it if the last one or its rows are damaged. None if there is none.

        The checkpoint before it then takes the place of the last one, and a line on standard error says why.

        Raises:
            ConfigError: the checkpoint is of another configuration.
            RunFolderError: there are checkpoints, and none is sound.
        """
        first: RunFolderError | None = None
        for name in (LAST, PREVIOUS):
            try:
                header = read_header(self.path, name)
                if header is None:
                    continue
                if header["config"] != self.key:
                    raise ConfigError(
                        f"output must hold checkpoints of this configuration ({self.key}), got one of {header['config']} in {self.path}; "
                        "a run cannot be resumed with another configuration"
                    )
                self.check_rows(int(header["round"]))
                check_row_counts(self.path, int(header["round"]))
                before = self.path / f"{PREVIOUS}.safetensors" if name == LAST else None
                check_files(self.path, self.path / f"{name}.safetensors", before)
            except RunFolderError as error:
                first = first or error
                continue
            if name == PREVIOUS:
                os.replace(self.path / f"{PREVIOUS}.safetensors", self.path / f"{LAST}.safetensors")
                sync_folder(self.path)
                why = str(first).partition("; ")[0] if first else f"{self.path / LAST}.safetensors is missing"
                print(f"damaged: {why}; going on from round {header['round']}, the checkpoint before it", file=sys.stderr, flush=True)
            return header
        if first is not None:
            raise RunFolderError(f"{str(first).partition('; ')[0]}; no sound checkpoint is left: force=true starts the run again")
        return None

    @abstractmethod
    def check_rows(self, done: int) -> None:
        """Check that the files hold all rows up to round or epoch ``done``.

        Raises:
            RunFolderError: a row is missing or damaged.
        """

    @property
    def finished(self) -> bool:
        """All rounds or epochs are done."""
        return self.header is not None and bool(self.header["finished"])

    def skipped(self) -> str:
        """A line that says that the run is finished, and that other code or another commit has made it, where this is so."""
        then, now = read_commit(self.path), current_commit()[0]
        note = f" (finished at commit {then}, the code is now at {now})" if then and now and then != now else ""
        note = f" (by other code: {listed(self.changed)} changed since)" if self.changed else note
        return f"already finished, skipped{note}"

    def describe(self, digests: Mapping[str, str]) -> None:
        """Write ``config.yaml`` and ``environment.json``. A run that goes on with other code keeps the record of the earlier code.

        Args:
            digests: hashes of the content of data sets and files, by name.
        """
        content = environment(self.config, [] if self.header is None else earlier_packages(self.path, self.config))
        content["data"] = dict(digests)
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True).encode())
        write_atomically(self.path / "environment.json", (json.dumps(content, indent=1) + "\n").encode())

    def _set_aside(self) -> None:
        """Move all files of the run but the lock to a new folder in :data:`REPLACED`, and say so."""
        files = [path for path in self.path.iterdir() if path.name != ".lock"]
        if files:
            places = (self.path.parent / REPLACED / f"{self.key}-{number}" for number in count(1))
            place = next(path for path in places if not path.exists())
            place.mkdir(parents=True)
            for path in sorted(files, key=lambda path: ("checkpoint" in path.name) + 2 * (path.name == CLIENT_STATES)):
                # checkpoints after their rows, and their files of clients last, so that a kill leaves none without what it needs
                os.replace(path, place / path.name)
            sync_folder(place)
            print(f"force: the earlier result is now in {place}", file=sys.stderr, flush=True)
        self.header, self.changed = None, []

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()


def header_matches(folder: Path, header: Mapping[str, object]) -> bool:
    """``checkpoint.json`` has the same content as the header of the checkpoint."""
    try:
        return json.loads((folder / "checkpoint.json").read_text()) == header
    except (OSError, ValueError):
        return False


class RunFolder(LockedFolder):
    """The folder of a federated run.

    Args:
        config: the resolved configuration.
        key: the hash of the run.
        num_classes: C, for the columns of accuracies per class; 0 for no such columns.
        series: the hash without the number of rounds. A run without a checkpoint goes on from another run of its series. Empty: it does
            not, as the state of the strategy is not saved.
    """

    def __init__(self, config: DictConfig, key: str, num_classes: int, series: str = "") -> None:
        super().__init__(config, key)
        self.num_classes, self.series = num_classes, series
        self._workers: Sequence[Mapping[str, object]] = []
        if self.header is None and series and not config.force:
            taken = begin_from_series(self.path, key, series, config)
            if taken is not None:
                self.header = read_header(self.path)
                print(f"going on from round {taken[1]} of the same run with other rounds, {taken[0]}", file=sys.stderr, flush=True)

    def check_rows(self, done: int) -> None:
        """See :class:`LockedFolder`."""
        may_drop = self.config.on_client_failure == "drop" or has_drift(self.config)
        check_federated_rows(self.path, done, may_drop=may_drop, sampled=self.config.evaluation.clients is not None)

    def begin(
        self, save_partition: Callable[[Path], None], shift_rows: Sequence[Mapping[str, object]], digests: Mapping[str, str]
    ) -> Checkpoint | None:
        """Write the files that describe the run, cut all rows after the checkpoint, and return the checkpoint if there is one.

        Args:
            save_partition: writes ``partition.npz`` to the path that it is given.
            shift_rows: rows of ``shift.csv``; empty where no client's data are shifted.
            digests: hashes of the content of data sets and files, by name.
        """
        done = 0 if self.header is None else int(str(self.header["round"]))
        remove_unused(self.path)  # files of clients that a killed run has written after its checkpoint
        for name in ("metrics.csv", clients_file(self.path).name, "generator.csv", "latents.csv", "tasks.csv"):
            cut(self.path / name, done)
        self.describe(digests)
        save_partition(self.path / "partition.npz")
        if shift_rows:
            (self.path / "shift.csv").unlink(missing_ok=True)
            append(self.path / "shift.csv", SHIFT_COLUMNS, shift_rows)
        return None if self.header is None else read_checkpoint(self.path)

    def vmap_choice(self) -> dict[str, object] | None:
        """The clients per vmap that this run has chosen before it was interrupted; None if there is no such choice."""
        path = self.path / "clients_per_vmap.json"
        return json.loads(path.read_text()) if path.exists() and self.header is not None else None

    def write_vmap_choice(self, choice: Mapping[str, object]) -> None:
        """Write ``clients_per_vmap.json``, which a resumed run reads."""
        write_atomically(self.path / "clients_per_vmap.json", (json.dumps(choice, indent=1) + "\n").encode())

    def write_tuned_params(self, choice: Mapping[str, object]) -> None:
        """Write ``tuned.json``: the tuned values of this run, and the file that they come from."""
        write_tuned_params(self.path, choice)

    def workers(self, environments: Sequence[Mapping[str, object]]) -> None:
        """Record the environments of the run's workers in ``environment.json``, if they have changed."""
        if environments != self._workers:
            record_workers(self.path, environments)
            self._workers = environments

    def row(self, values: Mapping[str, float]) -> None:
        """Append one row to ``metrics.csv`` and flush. New columns are added to the file."""
        classes = [f"global_test_accuracy_class_{c:02d}" for c in range(self.num_classes)]
        path, known = self.path / "metrics.csv", [*COLUMNS, *classes]
        header = header_of(path) or known
        more = [name for name in values if name not in header]
        columns = [*header[: len(header) - len(classes)], *more, *classes]
        if more and header is not known:
            widen(path, columns)
        append(path, columns, [values])

    def client_rows(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows, if there are any, to ``clients.csv`` or ``clients.csv.gz`` and flush.

        The first failure of a client adds the column ``failure``.
        """
        if not rows:
            return
        path = clients_file(self.path, self.config.evaluation.clients or self.config.num_clients)
        header = header_of(path) or list(CLIENT_COLUMNS)
        if "failure" not in header and any("failure" in row for row in rows):
            header = [*header, "failure"]
            if path.exists():
                widen(path, header)
        append(path, header, rows)

    def task_rows(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows, if there are any, to ``tasks.csv`` and flush."""
        if rows:
            append(self.path / "tasks.csv", TASK_COLUMNS, rows)

    def generator_rows(self, rows: Sequence[Mapping[str, object]], points: Sequence[Mapping[str, object]]) -> None:
        """Append rows to ``generator.csv`` and ``latents.csv`` and flush."""
        for name, columns, values in (("generator", GENERATOR_COLUMNS, rows), ("latents", LATENT_COLUMNS, points)):
            if values:
                append(self.path / f"{name}.csv", columns, values)

    def checkpoint(
        self, server_round: int, state: State, client_states: Mapping[int, State], simulated_seconds: float, name: str = "checkpoint"
    ) -> None:
        """The state after ``server_round``, atomically, as ``<name>.safetensors`` and ``<name>.json``."""
        if name == LAST:
            write_row_counts(self.path, server_round)
        checkpoint = Checkpoint(server_round, self.key, state, client_states, simulated_seconds, self.series)
        write_checkpoint(self.path, checkpoint, self.config.rounds, name)
