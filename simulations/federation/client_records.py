"""The states of clients during a run, as records: those that change are kept in memory until a checkpoint writes them to the run folder."""

from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord

from fedkd.client_states import ClientStates
from fedkd.federation import serialization
from fedkd.types import State

UNSAVED_BYTES = 64 * 2**20
"""States that no checkpoint has written yet are written to files where they take more memory than this."""


class ClientRecords(MutableMapping[int, ArrayRecord]):
    """The state of each client that has trained, by client. Memory does not grow with their number once the states are in files.

    Args:
        folder: the run folder.
        states: the states of the last checkpoint.
    """

    def __init__(self, folder: Path, states: Mapping[int, State]) -> None:
        self._folder, self._states = folder, ClientStates.of(states)
        self._unsaved_bytes = 0

    def __getitem__(self, client: int) -> ArrayRecord:
        return serialization.to_array_record(self._states.arrays(client))

    def __setitem__(self, client: int, record: ArrayRecord) -> None:
        arrays = serialization.to_arrays(record)  # views of a message from a worker, which would stay in memory as a whole
        self._states.put(client, {name: np.array(values, order="C") for name, values in arrays.items()})
        self._unsaved_bytes += sum(values.nbytes for values in arrays.values())
        if self._unsaved_bytes > UNSAVED_BYTES:
            if self._states.num_bytes > UNSAVED_BYTES:  # not, if checkpoints have written them
                self._states.write(self._folder)
            self._unsaved_bytes = 0

    def __delitem__(self, client: int) -> None:
        self._states.remove(client)

    def __iter__(self) -> Iterator[int]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, client: object) -> bool:
        return client in self._states

    def snapshot(self) -> ClientStates:
        """The states as they are now, for a checkpoint."""
        return self._states.copy()


class DecodedStates(Mapping[int, State]):
    """The states of clients as tensors, in ascending order of clients. Each is decoded when it is asked for.

    Args:
        records: the states by client.
        device: the device of the tensors.
    """

    def __init__(self, records: Mapping[int, ArrayRecord], device: torch.device | str = "cpu") -> None:
        self._records, self._device = records, device

    def __getitem__(self, client: int) -> State:
        return serialization.from_record(self._records[client], self._device)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._records))

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, client: object) -> bool:
        return client in self._records
