"""Atomic writing of files, files that carry a checksum, and the schema version of run folders. This module needs no torch."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 4
"""Version of the files in a run folder. A folder of another version is refused."""

CLIENT_STATES = "client_states"
"""Folder in a run folder with the states of clients, see :mod:`fedkd.client_states`."""

NO_CHECKSUM = "0" * 64
"""Stands for the checksum while it is computed."""


def with_home(path: str) -> str:
    """A path with the home folder for ``~`` at its beginning. The ``~`` of an unknown user stays; such a path is made absolute."""
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if expanded.startswith("~") else expanded


def write_atomically(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write ``content`` to ``path``. After a crash the file holds either its old content or all of the new content.

    The temporary file has a fixed name, because a folder has one writer. A temporary file of a killed process is overwritten.

    Args:
        path: the file.
        content: its new content.
        previous: the file that keeps the old content of ``path``; None: it is not kept.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = _write_beside(path, content)
    if previous is not None and path.exists():
        _keep(path, previous)
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write several files, each of them atomically, and return when all are on disk. The disk is waited for once for many files.

    Args:
        contents: the new content by file. The folders must exist.

    Raises:
        OSError: a file cannot be written.
    """

    def write(item: tuple[Path, bytes]) -> None:
        os.replace(_write_beside(*item), item[0])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, contents.items()))
        list(pool.map(sync_folder, sorted({path.parent for path in contents})))


def _write_beside(path: Path, content: bytes) -> Path:
    """Write ``content`` to a temporary file beside ``path``, wait until it is on disk, and return its path."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _keep(path: Path, previous: Path) -> None:
    """Give the content of ``path`` the name ``previous`` too."""
    temporary = previous.with_name(f".{previous.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links: until the next file is in its place, the content has the name previous alone
        os.replace(path, previous)
        return
    os.replace(temporary, previous)
    temporary.unlink(missing_ok=True)  # it is still there if both names were of one file already


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on disk. A file whose content is on disk is lost in a crash if its name is not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(content: bytes) -> tuple[bytes, str]:
    """A safetensors file with its checksum.

    Args:
        content: the file, whose metadata ``fedkd`` are JSON with :data:`NO_CHECKSUM` under ``sha256``.

    Returns:
        The file with the checksum in that place, and the checksum: the SHA-256 of ``content``.
    """
    checksum = hashlib.sha256(content).hexdigest()
    place = content.index(NO_CHECKSUM.encode())
    return b"".join([content[:place], checksum.encode(), content[place + len(checksum) :]]), checksum


def embedded_header(content: bytes) -> dict[str, Any]:
    """The metadata ``fedkd`` of a safetensors file.

    Raises:
        ValueError: the content is not that of such a file.
    """
    try:
        header = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["fedkd"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"it has no readable header ({type(error).__name__})") from error
    if not isinstance(header, dict):
        raise ValueError("it has no readable header")
    return header


def verify(content: bytes) -> None:
    """Check the checksum that :func:`seal` has written.

    Raises:
        ValueError: the checksum is not that of the content. One changed bit anywhere in the file is found.
    """
    checksum = str(embedded_header(content).get("sha256")).encode()
    place = content.find(checksum)
    found = hashlib.sha256(content[:place])
    found.update(NO_CHECKSUM.encode())
    found.update(memoryview(content)[place + len(checksum) :])
    if found.hexdigest().encode() != checksum:
        raise ValueError("its checksum is not that of its content")
