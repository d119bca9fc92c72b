"""The states of clients during a run, as records: those that change are kept in memory until a checkpoint writes them to the run folder."""

from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord

from fedkd.client_states import Arrays, ClientStates
from fedkd.federation import serialization
from fedkd.types import State, Tensors

UNSAVED_BYTES = 64 * 2**20
"""States that no checkpoint has written yet are written to files where they take more memory than this."""

SMALL_PART_BYTES = 1024
"""Parts of a state of at most so many bytes stay in memory once they were read. The global model needs BatchNorm statistics of all clients
in every round, and not their large parts."""


class ClientRecords(MutableMapping[int, ArrayRecord]):
    """The state of each client that has trained, by client. Memory does not grow with their number once the states are in files.

    Args:
        folder: the run folder.
        states: the states of the last checkpoint.
    """

    def __init__(self, folder: Path, states: Mapping[int, State]) -> None:
        self._folder, self._states = folder, ClientStates.of(states)
        self._unsaved_bytes = 0
        self._parts: dict[int, dict[str, Arrays | None]] = {}

    def __getitem__(self, client: int) -> ArrayRecord:
        return serialization.to_array_record(self._states.arrays(client))

    def __setitem__(self, client: int, record: ArrayRecord) -> None:
        arrays = serialization.to_arrays(record)  # views of a message from a worker, which would stay in memory as a whole
        self._parts.pop(client, None)
        self._states.put(client, {name: np.array(values, order="C") for name, values in arrays.items()})
        self._unsaved_bytes += sum(values.nbytes for values in arrays.values())
        if self._unsaved_bytes > UNSAVED_BYTES:
            if self._states.num_bytes > UNSAVED_BYTES:  # not, if checkpoints have written them
                self._states.write(self._folder)
            self._unsaved_bytes = 0

    def __delitem__(self, client: int) -> None:
        self._parts.pop(client, None)
        self._states.remove(client)

    def __iter__(self) -> Iterator[int]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, client: object) -> bool:
        return client in self._states

    def parts(self, client: int) -> Mapping[str, Arrays | None]:
        """The parts of a client's state; None for a part that is large."""
        if client not in self._parts:
            parts: dict[str, Arrays] = {}
            for name, values in self._states.arrays(client).items():
                parts.setdefault(name.partition(":")[0], {})[name] = values
            small = {part: sum(values.nbytes for values in arrays.values()) <= SMALL_PART_BYTES for part, arrays in parts.items()}
            copies = {
                part: {name: values.copy() for name, values in parts[part].items()} for part in parts if small[part]
            }  # views hold more
            self._parts[client] = {part: copies.get(part) for part in parts}
        return self._parts[client]

    def snapshot(self) -> ClientStates:
        """The states as they are now, for a checkpoint."""
        return self._states.copy()


class DecodedStates(Mapping[int, State]):
    """The states of clients as tensors, in ascending order of clients. Each part is decoded when it is asked for.

    Args:
        records: the states by client.
        device: the device of the tensors.
    """

    def __init__(self, records: Mapping[int, ArrayRecord], device: torch.device | str = "cpu") -> None:
        self._records, self._device = records, device

    def __getitem__(self, client: int) -> State:
        if isinstance(self._records, ClientRecords) and client in self._records:
            return cast(State, DecodedState(self._records, client, self._device))
        return serialization.from_record(self._records[client], self._device)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._records))

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, client: object) -> bool:
        return client in self._records


class DecodedState(Mapping[str, Tensors]):
    """The state of one client as tensors by part.

    Args:
        records: the states by client.
        client: the client, which has a state.
        device: the device of the tensors.
    """

    def __init__(self, records: ClientRecords, client: int, device: torch.device | str) -> None:
        self._records, self._client, self._device = records, client, device

    def __getitem__(self, part: str) -> Tensors:
        small = self._records.parts(self._client)[part]
        if small is None:
            return serialization.from_record(self._records[self._client], self._device)[part]
        return {name[len(part) + 1 :]: torch.from_numpy(np.array(values)).to(self._device) for name, values in small.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._records.parts(self._client))

    def __len__(self) -> int:
        return len(self._records.parts(self._client))

    def __contains__(self, part: object) -> bool:
        return part in self._records.parts(self._client)
