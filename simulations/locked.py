"""A folder that one process writes at a time, and that belongs to one configuration."""

import json
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from fedkd.checkpoint import read_header, write_header


class LockedFolder:
    """``<output>/<name>/<hash>/``, locked for as long as this object lives.

    Args:
        config: has ``output`` and ``name``.
        key: the hash.
        patient: another process that writes it is waited for.

    Raises:
        ValueError: the folder cannot be written, is in use, or holds a checkpoint of another configuration.
    """

    def __init__(self, config: DictConfig, key: str, patient: bool = False) -> None:
        self.path = Path(config.output).expanduser().absolute() / config.name / key
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=-1 if patient else 0)
        except Timeout:
            raise ValueError(f"output must hold run folders that no other process is writing, got {self.path}, which is in use") from None
        except OSError as error:
            raise ValueError(f"output must be a folder that can be written, got {config.output!r}: {error}") from error
        self.header = read_header(self.path)
        if self.header is not None and self.header["config"] != key:
            raise ValueError(
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
