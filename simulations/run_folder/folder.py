"""The run folder: the files that a run writes, and the lock that keeps a second process out."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from fedkd.checkpoint import Checkpoint, read_checkpoint, read_header, write_checkpoint, write_header
from fedkd.errors import ConfigError
from fedkd.files import write_atomically
from fedkd.types import State
from simulations.run_folder.csv_rows import append, cut, header_of, widen
from simulations.run_folder.environment import current_commit, environment, note_choice, read_commit
from simulations.run_folder.metric_names import CLIENT_COLUMNS, COLUMNS, GENERATOR_COLUMNS, LATENT_COLUMNS, SHIFT_COLUMNS
from simulations.run_folder.tensorboard import open_writer, write_row


class LockedFolder:
    """``<output>/<name>/<hash>/``, locked for as long as this object lives.

    Args:
        config: has ``output`` and ``name``.
        key: the hash.
        patient: another process that writes it is waited for.

    Raises:
        ConfigError: the folder cannot be written, is in use, or holds a checkpoint of another configuration.
    """

    def __init__(self, config: DictConfig, key: str, patient: bool = False) -> None:
        self.path = Path(config.output).expanduser().absolute() / config.name / key
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=-1 if patient else 0)
        except Timeout:
            raise ConfigError(f"output must hold run folders that no other process is writing, got {self.path}, which is in use") from None
        except OSError as error:
            raise ConfigError(f"output must be a folder that can be written, got {config.output!r}: {error}") from error
        self.header = read_header(self.path)
        if self.header is not None and self.header["config"] != key:
            raise ConfigError(
                f"output must hold checkpoints of this very configuration ({key}), got one of {self.header['config']} in {self.path}; "
                "a run cannot be resumed with another configuration"
            )

        if self.header is not None and not says(self.path, self.header):  # killed between the two files
            write_header(self.path, self.header)

    @property
    def finished(self) -> bool:
        """All that was asked for is done."""
        return self.header is not None and bool(self.header["finished"])

    def release(self) -> None:
        """Let others have the folder."""
        self._lock.release()


def says(folder: Path, header: Mapping[str, object]) -> bool:
    """``checkpoint.json`` says the same as the checkpoint."""
    try:
        return json.loads((folder / "checkpoint.json").read_text()) == header
    except (OSError, ValueError):
        return False


class RunFolder(LockedFolder):
    """The folder of a federated run.

    Args:
        config: the resolved configuration.
        key: the hash of the run.
        num_classes: C, for the columns of accuracies per class.
    """

    def __init__(self, config: DictConfig, key: str, num_classes: int) -> None:
        super().__init__(config, key)
        self.config, self.key, self.num_classes, self.board = config, key, num_classes, None

    def commit_note(self) -> str | None:
        """A line that says that other code made the finished run. None if the code is the same, or unknown."""
        then, now = read_commit(self.path), current_commit()[0]
        return f"finished at commit {then}, the code is now at {now}" if then and now and then != now else None

    def begin(self, save_partition: Callable[[Path], None], shift_rows: list[Mapping[str, float]]) -> Checkpoint | None:
        """Write the files that describe the run, cut all rows after the checkpoint, and return the checkpoint if there is one.

        Args:
            save_partition: writes ``partition.npz`` to the path that it is given.
            shift_rows: rows of ``shift.csv``; empty where no client's data are shifted.
        """
        done = 0 if self.header is None else int(self.header["round"])
        for name in ("metrics.csv", "clients.csv", "generator.csv", "latents.csv"):
            cut(self.path / name, done)
        self.board = open_writer(self.config, self.path, done + 1)
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True).encode())
        write_atomically(self.path / "environment.json", (json.dumps(environment(self.config), indent=1) + "\n").encode())
        save_partition(self.path / "partition.npz")
        if shift_rows:
            (self.path / "shift.csv").unlink(missing_ok=True)
            append(self.path / "shift.csv", SHIFT_COLUMNS, shift_rows)
        return None if self.header is None else read_checkpoint(self.path)

    def choice(self) -> dict[str, object] | None:
        """What an earlier part of this run has chosen where ``cohort`` is auto; None where there is none."""
        path = self.path / "clients_per_vmap.json"
        return json.loads(path.read_text()) if path.exists() and self.header is not None else None

    def choose(self, choice: Mapping[str, object]) -> None:
        """Note the choice, for as long as the run lasts."""
        write_atomically(self.path / "clients_per_vmap.json", (json.dumps(choice, indent=1) + "\n").encode())

    def tuned(self, choice: Mapping[str, object]) -> None:
        """Note which row of which file of ``simulations.experiments.tuning`` this run has taken."""
        note_choice(self.path, choice)

    def row(self, values: Mapping[str, float]) -> None:
        """One row of ``metrics.csv``, flushed; columns that no row has had so far are added to all."""
        classes = [f"global_test_accuracy_class_{c:02d}" for c in range(self.num_classes)]
        path, known = self.path / "metrics.csv", [*COLUMNS, *classes]
        header = header_of(path) or known
        more = [name for name in values if name not in header]
        columns = [*header[: -len(classes)], *more, *classes]
        if more and header is not known:
            widen(path, columns)
        append(path, columns, [values])
        write_row(self.board, values)

    def client_rows(self, rows: list[Mapping[str, float]]) -> None:
        """Rows of ``clients.csv``, flushed."""
        append(self.path / "clients.csv", CLIENT_COLUMNS, rows)

    def diagnosis(self, rows: list[Mapping[str, float]], points: list[Mapping[str, float]]) -> None:
        """Rows of ``generator.csv`` and of ``latents.csv``, flushed."""
        for name, columns, values in (("generator", GENERATOR_COLUMNS, rows), ("latents", LATENT_COLUMNS, points)):
            if values:
                append(self.path / f"{name}.csv", columns, values)
        for row in rows:
            write_row(self.board, row, "generator")

    def release(self) -> None:
        """Let others have the folder."""
        if self.board is not None:
            self.board.close()
        super().release()

    def checkpoint(self, server_round: int, state: State, memories: Mapping[int, State], simulated_seconds: float) -> None:
        """The state after ``server_round``, atomically."""
        checkpoint = Checkpoint(server_round, self.key, state, memories, simulated_seconds)
        write_checkpoint(self.path, checkpoint, self.config.rounds)
