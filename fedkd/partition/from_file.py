"""A partition that is read from an npz file of index arrays."""

import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedkd.errors import ConfigError, require
from fedkd.partition.common import check_arguments
from fedkd.types import Partition

REMEDY = "Write one with np.savez('mine.npz', train_0=indices, test_0=indices, ...); fedkd/partition/README.md converts others"
"""How to make a partition file."""


@dataclass(frozen=True, kw_only=True)
class FromFile:
    """Read ``train_00``, ``train_01``, ... and ``test_00``, ...: the indices of each client's training and test examples.

    The numbers may be padded with zeros to any width. Other keys are ignored. Training indices are disjoint. A client with an empty array
    of training indices never trains. Test indices may be empty and may overlap. ``partition.npz`` in a run folder is such a file.

    Args:
        path: the npz file.
    """

    path: str

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Read the partition.

        Args:
            train_labels: labels of the training examples [N].
            test_labels: labels of the test examples [M].
            num_clients: number of clients, K.
            rng: not used.

        Raises:
            ConfigError: the file is missing, is not an npz file, or has no partition of these examples among K clients.
        """
        check_arguments(train_labels, test_labels, num_clients)
        arrays = self._read()
        train = self._shards(arrays, "train", num_clients, len(train_labels))
        test = self._shards(arrays, "test", num_clients, len(test_labels))
        self._require(any(len(index) > 0 for index in train), "give at least one client training examples")
        indices, num_owners = np.unique(np.concatenate(train), return_counts=True)
        repeated = indices[num_owners.argmax()]
        self._require(num_owners.max() == 1, f"give a training example to one client; index {repeated} is given to several")
        return Partition(train, test)

    def _require(self, holds: bool, rule: str) -> None:
        """Check a rule about the file."""
        require(holds, "path", f"must {rule}", self.path)

    def _read(self) -> dict[str, np.ndarray]:
        """The arrays of all clients, by key."""
        path = Path(self.path).expanduser()
        self._require(path.is_file(), "be an npz file with train_00, test_00, ...; there is no such file")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files if re.fullmatch(r"(train|test)_[0-9]+", key)}
            if not arrays:
                names = ", ".join(file.files[:5])
                raise ConfigError(f"path must hold arrays train_00, test_00, ..., got {self.path!r} with {names}. {REMEDY}")
            return arrays
        except ConfigError:
            raise
        except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            reason = "pickled objects" if "pickle" in str(error) else f"{type(error).__name__}: {error}"
            reason = reason if zipfile.is_zipfile(path) else "it is in another format, or damaged"
            raise ConfigError(f"path must be an npz file of index arrays, got {self.path!r} ({reason}). {REMEDY}") from error

    def _shards(self, arrays: dict[str, np.ndarray], part: str, num_clients: int, num_examples: int) -> list[np.ndarray]:
        """For each client the indices of one part, checked, ascending."""
        keys = [key for key in arrays if key.startswith(f"{part}_")]
        by_client = {int(key.removeprefix(f"{part}_")): arrays[key] for key in keys}
        self._require(len(by_client) == len(keys), f"hold one array for every client; some {part}_ keys stand for the same number")
        missing = sorted(set(range(num_clients)) - set(by_client))
        from_one = " (clients are numbered from 0)" if missing == [0] and num_clients in by_client else ""
        rule = f"hold {part}_ arrays for num_clients={num_clients} clients; missing are {_first_few(missing)}{from_one}"
        self._require(not missing, rule)
        extra = sorted(set(by_client) - set(range(num_clients)))
        rule = f"hold {part}_ arrays for num_clients={num_clients} clients; there are more: {_first_few(extra)}"
        self._require(not extra, f"{rule} (set num_clients={max(by_client, default=0) + 1})")
        return [self._check_index(by_client[k], f"{part}_ array of client {k}", num_examples) for k in range(num_clients)]

    def _check_index(self, index: np.ndarray, name: str, num_examples: int) -> np.ndarray:
        """Check that indices are distinct and in 0..num_examples-1, and sort them."""
        self._require(
            index.ndim == 1 and (np.issubdtype(index.dtype, np.integer) or len(index) == 0),
            f"hold vectors of integers; the {name} is {index.dtype}{list(index.shape)}",
        )
        inside = len(index) == 0 or (index.min() >= 0 and index.max() < num_examples)
        self._require(inside, f"hold indices in 0..{num_examples - 1}; the {name} has others")
        distinct = np.unique(index).astype(np.int64)
        self._require(len(distinct) == len(index), f"hold every index once; the {name} repeats some")
        return distinct


def _first_few(numbers: Sequence[int]) -> str:
    """The first five of ``numbers``."""
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
