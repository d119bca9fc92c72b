"""The memory of the clients of a node: their states after the rounds in which they have trained.

The memory stands in the context that Flower keeps for the node, and in a folder of the node, as the context ends with the SuperNode.
A state is found by the round after which the client has it. The server asks for the round of the client's last update that was aggregated,
so an update that was lost, discarded or came too late leaves no trace.
"""

from collections.abc import Iterator
from pathlib import Path

from flwr.app import ArrayRecord, RecordDict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedkd.errors import RunFolderError
from fedkd.federation import serialization
from fedkd.files import write_atomically


class ClientMemory:
    """The memory of one client in one run.

    Args:
        state: the state of the node's context.
        folder: folder of the node for the memory of all runs.
        run: identifies the run.
        client: the client.
        num_kept: states that are kept, >= 2. A run that is resumed needs the one of its last checkpoint.
    """

    def __init__(self, state: RecordDict, folder: Path, run: str, client: int, num_kept: int) -> None:
        self._state, self._num_kept = state, num_kept
        self._folder = folder / run / f"client_{client:05d}"
        self._prefix = f"{run}/{client}/"

    def load(self, server_round: int) -> ArrayRecord | None:
        """The client's state after a round in which it has trained. None for round 0, before the first one.

        Raises:
            RunFolderError: the node does not have the state.
        """
        if server_round == 0:
            return None
        if (name := f"{self._prefix}{server_round}") in self._state:
            return serialization.array_record(self._state, name)
        path = self._path(server_round)
        try:
            return serialization.to_array_record(load(path.read_bytes()))
        except (OSError, SafetensorError) as error:
            kept = sorted({*self._rounds_in_context(), *self._rounds_on_disk()})
            rule = f"the memory of this client must hold its state after round {server_round}, got rounds {kept}"
            raise RunFolderError(f"{rule} ({path}: {type(error).__name__}); force=true starts the run again") from error

    def store(self, server_round: int, record: ArrayRecord) -> None:
        """Keep the client's state after a round. States of later rounds, of a run that was given up, are deleted, and so are old ones."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(server_round), save(serialization.to_arrays(record)))
        self._state[f"{self._prefix}{server_round}"] = record
        for rounds, delete in ((self._rounds_on_disk, self._delete_file), (self._rounds_in_context, self._delete_record)):
            found = sorted(rounds())
            past = [number for number in found if number <= server_round]
            for number in {*found} - {*past[-self._num_kept :]}:
                delete(number)

    def _path(self, server_round: int) -> Path:
        return self._folder / f"round_{server_round:06d}.safetensors"

    def _delete_file(self, server_round: int) -> None:
        self._path(server_round).unlink(missing_ok=True)

    def _delete_record(self, server_round: int) -> None:
        del self._state[f"{self._prefix}{server_round}"]

    def _rounds_on_disk(self) -> Iterator[int]:
        return (int(path.stem.partition("_")[2]) for path in self._folder.glob("round_*.safetensors"))

    def _rounds_in_context(self) -> Iterator[int]:
        return (int(name.removeprefix(self._prefix)) for name in list(self._state) if name.startswith(self._prefix))
