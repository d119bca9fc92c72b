"""The states of clients in a run folder: small ones inside the checkpoint, others in a file for each client.

A file is named by its content, ``client_states/<client // 100>/<client>-<digest>.safetensors``, and never changes. So a checkpoint writes
only the states that have changed since the one before it, several checkpoints refer to the same file, and a damaged file is found. A
checkpoint holds the table of its clients and digests.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from fedkd.errors import RunFolderError
from fedkd.files import CLIENT_STATES, write_all
from fedkd.types import State, flatten, unflatten

CLIENTS_PER_GROUP = 100
"""Clients whose files are in one folder."""

INLINE_BYTES = 4 * 2**20
"""States of at most so many bytes, of all clients together, are inside the checkpoint. Files of their own would be slower."""

DIGEST_BYTES = 16
"""Length of a digest: so many bytes of the SHA-256 of a file."""

FILES, INLINE = "client_files", "clients"
"""Prefixes of the tensors in a checkpoint: the table of files, and states of clients. ``clients.<n>`` are clients with equal names, types
and shapes, whose arrays are stacked [K, ...]."""

Arrays = dict[str, np.ndarray]
"""A state by ``part:key``."""


@dataclass(slots=True)
class Entry:
    """The state of a client, in memory or in a file. Its value never changes; copies of :class:`ClientStates` share it.

    Args:
        arrays: the state; None where it is in a file.
        infinite: names of its arrays that hold NaN or infinity; None where they have not been looked for.
        folder: the run folder with the file; None where there is no file.
        digest: of the file, in hexadecimal digits.
        is_verified: the file has the digest, as this process has written or read it.
    """

    arrays: Arrays | None
    infinite: tuple[str, ...] | None = None
    folder: Path | None = None
    digest: str = ""
    is_verified: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return 0 if self.arrays is None else sum(value.nbytes for value in self.arrays.values())


class ClientStates(Mapping[int, State]):
    """The states of clients by number, in ascending order. A state in a file is read each time it is asked for, and not kept.

    Args:
        entries: the states by client.

    Raises:
        RunFolderError: when a state is read, and its file is missing or damaged.
    """

    def __init__(self, entries: Mapping[int, Entry] | None = None) -> None:
        self._entries = dict(entries or {})

    @classmethod
    def of(cls, states: Mapping[int, State]) -> "ClientStates":
        """States in memory; the object itself if it is one of this class."""
        if isinstance(states, ClientStates):
            return states
        arrays = {k: {name: value.detach().cpu().numpy() for name, value in flatten(state).items()} for k, state in states.items()}
        return cls({client: Entry(dict(sorted(values.items()))) for client, values in arrays.items()})

    @classmethod
    def from_tensors(cls, folder: Path, tensors: Mapping[str, np.ndarray], infinite: Mapping[int, tuple[str, ...]]) -> "ClientStates":
        """The states that a checkpoint holds or refers to.

        Args:
            folder: the run folder.
            tensors: what :meth:`tensors` has returned.
            infinite: names of arrays with NaN or infinity, by client.
        """
        entries, groups = dict[int, Entry](), dict[str, Arrays]()
        for key, values in sorted(tensors.items()):
            owner, _, name = key.partition("|")
            groups.setdefault(owner, {})[name] = values
        files = groups.pop(FILES, {})
        for client, digest in zip(files.get("clients", ()), files.get("digests", ())):
            entries[int(client)] = Entry(None, infinite.get(int(client), ()), folder, digest.tobytes().hex())
        for columns in groups.values():
            for row, number in enumerate(columns.pop("clients").tolist()):
                entries[number] = Entry({name: values[row, ...] for name, values in columns.items()}, infinite.get(number, ()))
        return cls(entries)

    def __getitem__(self, client: int) -> State:
        return unflatten({name: torch.from_numpy(np.array(values, order="C")) for name, values in self.arrays(client).items()})

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, client: object) -> bool:
        return client in self._entries

    def arrays(self, client: int) -> Arrays:
        """The state of a client as arrays, which must not be changed.

        Raises:
            KeyError: the client has no state.
            RunFolderError: its file is missing or damaged.
        """
        entry = self._entries[client]
        return read_file(client, entry) if entry.arrays is None else entry.arrays

    def put(self, client: int, arrays: Arrays) -> None:
        """Set the state of a client, in memory. The arrays must not be changed afterwards."""
        self._entries[client] = Entry(dict(sorted(arrays.items())))

    def remove(self, client: int) -> None:
        """Remove the state of a client."""
        del self._entries[client]

    def copy(self) -> "ClientStates":
        """The same states, which later calls of :meth:`put` do not change."""
        return ClientStates(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of the states in memory."""
        return sum(entry.num_bytes for entry in self._entries.values())

    def infinite_names(self) -> list[str]:
        """``<client>|<part>:<key>`` of all arrays that hold NaN or infinity, by client."""
        for entry in self._entries.values():
            if entry.infinite is None:
                arrays = (entry.arrays or {}).items()
                entry.infinite = tuple(name for name, x in arrays if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all())
        return [f"{client}|{name}" for client in self for name in self._entries[client].infinite or ()]

    def write(self, folder: Path) -> None:
        """Write the states that are in memory to files, and release them. Small states stay in memory, see :data:`INLINE_BYTES`.

        Files of another run folder are linked into this one. After a crash, files may be there that no checkpoint refers to.

        Raises:
            OSError: a file cannot be written.
        """
        if all(entry.arrays is not None for entry in self._entries.values()) and self.num_bytes <= INLINE_BYTES:
            return
        self.infinite_names()
        new = {client: entry for client, entry in self._entries.items() if entry.arrays is not None}
        contents = {client: save(entry.arrays or {}) for client, entry in new.items()}
        digests = {client: digest_of(content) for client, content in contents.items()}
        others = [(k, entry) for k, entry in self._entries.items() if entry.arrays is None and entry.folder != folder]
        for client in [*new, *(k for k, _ in others)]:
            file_path(folder, client, "").parent.mkdir(parents=True, exist_ok=True)
        write_all({file_path(folder, client, digests[client]): content for client, content in contents.items()})
        for client, entry in new.items():
            entry.folder, entry.digest, entry.arrays, entry.is_verified = folder, digests[client], None, True
        for client, entry in others:
            assert entry.folder is not None, "a state is in memory or in a file"
            link(file_path(entry.folder, client, entry.digest), file_path(folder, client, entry.digest))
            self._entries[client] = Entry(None, entry.infinite, folder, entry.digest, entry.is_verified)

    def tensors(self) -> Arrays:
        """What a checkpoint holds of these states, after :meth:`write`: the table of files, and the states that are in memory."""
        files = [client for client in self if self._entries[client].arrays is None]
        forms: dict[tuple, list[int]] = {}
        for client in self:
            if (arrays := self._entries[client].arrays) is not None:
                forms.setdefault(tuple((name, x.dtype.str, x.shape) for name, x in arrays.items()), []).append(client)
        tensors: Arrays = {}
        for number, (form, clients) in enumerate(forms.items()):
            states = [self._entries[client].arrays or {} for client in clients]
            tensors[f"{INLINE}.{number}|clients"] = np.array(clients, np.int64)
            tensors |= {f"{INLINE}.{number}|{name}": np.stack([state[name] for state in states]) for name, _, _ in form}
        if files:
            digests = b"".join(bytes.fromhex(self._entries[client].digest) for client in files)
            tensors[f"{FILES}|clients"] = np.array(files, np.int64)
            tensors[f"{FILES}|digests"] = np.frombuffer(digests, np.uint8).reshape(len(files), DIGEST_BYTES)
        return tensors


def digest_of(content: bytes) -> str:
    """The digest of a file's content."""
    return hashlib.sha256(content).digest()[:DIGEST_BYTES].hex()


def file_path(folder: Path, client: int, digest: str) -> Path:
    """The file of a client's state in a run folder."""
    return folder / CLIENT_STATES / f"{client // CLIENTS_PER_GROUP:03d}" / f"{client}-{digest}.safetensors"


def read_file(client: int, entry: Entry) -> Arrays:
    """The state in a client's file. The digest is compared the first time that this process reads the file.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    assert entry.folder is not None, "a state is in memory or in a file"
    path = file_path(entry.folder, client, entry.digest)
    try:
        content = path.read_bytes()
        if not entry.is_verified and digest_of(content) != entry.digest:
            raise ValueError("its content is not that of its digest")
        entry.is_verified = True
        return dict(sorted(load(content).items()))
    except (OSError, ValueError, SafetensorError) as error:
        why = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise damaged(path, why) from error


def damaged(path: Path, why: str) -> RunFolderError:
    """The error for a client's file that is missing or damaged."""
    remedy = "the same command goes on from the checkpoint before it if that one is sound, force=true starts again"
    return RunFolderError(f"output must hold the clients' states that a checkpoint refers to, got {path}: {why}; {remedy}")


def link(source: Path, target: Path) -> None:
    """Give the content of ``source`` the name ``target`` too; where the file system has no links, copy it."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise damaged(source, "it is missing") from error
    except OSError:
        shutil.copyfile(source, target)


def referenced(checkpoint: Path) -> dict[int, str]:
    """The digest of each client's file that a checkpoint file refers to. Empty where the file is missing, damaged or no checkpoint."""
    try:
        with safe_open(checkpoint, "np") as file:
            if f"{FILES}|clients" not in file.keys():
                return {}
            clients, digests = file.get_tensor(f"{FILES}|clients"), file.get_tensor(f"{FILES}|digests")
    except (OSError, SafetensorError):
        return {}
    return {int(client): digest.tobytes().hex() for client, digest in zip(clients, digests)}


def check_files(folder: Path, checkpoint: Path, before: Path | None = None) -> None:
    """Check the files of clients that a checkpoint refers to.

    All files must exist. The content is compared of the files that the checkpoint before it does not share, as going back would help
    there. The content of the others is compared when they are read.

    Args:
        folder: the run folder.
        checkpoint: the checkpoint's file.
        before: the file of the checkpoint before it; None if there is none.

    Raises:
        RunFolderError: a file is missing or damaged.
    """
    table, shared = referenced(checkpoint), {} if before is None else referenced(before)
    there = {path.name for path in existing_files(folder)} if table else set()
    for client, digest in table.items():
        path = file_path(folder, client, digest)
        if path.name not in there:
            raise damaged(path, "it is missing")
        if shared.get(client) != digest:
            read_file(client, Entry(None, folder=folder, digest=digest))


def existing_files(folder: Path) -> Iterator[os.DirEntry]:
    """All files of clients' states in a run folder, those of interrupted writes included."""
    if (folder / CLIENT_STATES).is_dir():
        for group in os.scandir(folder / CLIENT_STATES):
            if group.is_dir(follow_symlinks=False):
                yield from os.scandir(group)


def remove_unused(folder: Path, states: ClientStates | None = None) -> None:
    """Remove the files to which neither a checkpoint in the run folder nor one of ``states`` refers."""
    if not (folder / CLIENT_STATES).is_dir():
        return
    tables = [referenced(path) for path in folder.glob("*.safetensors")]
    tables += [{client: entry.digest for client, entry in states._entries.items()}] if states is not None else []
    used = {file_path(folder, client, digest).name for table in tables for client, digest in table.items()}
    for file in list(existing_files(folder)):
        if file.name not in used:
            os.unlink(file)
