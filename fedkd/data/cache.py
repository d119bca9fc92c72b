"""The cache of decoded images. A data set is decoded once per machine; all processes memory-map the result and check its digests.

Several machines can share the folder. Each decodes into a folder of its own, the first one that ends gives the entry, and none removes what
another one builds, also where the file system's locks hold on one machine alone.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from fedkd.errors import ConfigError

log = logging.getLogger("fedkd")

FORMAT = 1
"""Version of the layout of an entry. It is part of every key, so that a new layout never reads an old entry."""

Allocate = Callable[[str, tuple[int, ...], str], np.ndarray]
"""``(name, shape, dtype) -> array`` on disk, to be filled."""


class Decoded(NamedTuple):
    """What is known of a data set beside its arrays.

    Args:
        class_names: names of the classes, or empty.
        unreadable: (location, reason) of each example that cannot be read.
        group_names: names of the groups of the examples, or empty.
    """

    class_names: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...] = ()
    group_names: tuple[str, ...] = ()


Decode = Callable[[Allocate], Decoded]
"""Allocates and fills the arrays."""

_verified: set[tuple[Any, ...]] = set()
"""Entries that this process has checked: their path, and the stat of every file, so that a changed file is checked again."""


@dataclass(frozen=True)
class Content:
    """A decoded data set.

    Args:
        arrays: ``train_x``, ``train_y``, ``test_x``, and ``test_y``.
        class_names: names of the classes, or empty.
        digest: hash of the arrays, independent of any path.
        unreadable: (location, reason) of each example that was left out because it cannot be read.
        group_names: names of the groups of the examples, or empty.
    """

    arrays: dict[str, np.ndarray]
    class_names: tuple[str, ...]
    digest: str
    unreadable: tuple[tuple[str, str], ...] = ()
    group_names: tuple[str, ...] = ()


class _Damaged(Exception):
    """An entry of the cache is damaged; the message gives the reason."""


# ----------------------------------------------------------------------------------------------------------------- digests
def content_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash of names, types, shapes, and values of arrays. It does not depend on where and how they are stored."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        state.update(array.data.cast("B"))
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Hash of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def json_digest(value: object) -> str:
    """Hash of a value that JSON can represent. It does not depend on the order of keys."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


# -------------------------------------------------------------------------------------------------------- folder and locks
def cache_directory(cache: str | None) -> Path:
    """The folder of the cache: ``cache``, or else ``$XDG_CACHE_HOME/fedkd`` or ``~/.cache/fedkd``. It is created if it is missing.

    Raises:
        ConfigError: the folder cannot be created, or nothing says where it is.
    """
    try:
        path = Path(cache).expanduser() if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedkd"
    except RuntimeError as error:  # neither HOME nor the table of users names a home
        raise ConfigError(f"cache must be a folder that can be found, got {cache or '~/.cache/fedkd'!r} without a home; set it") from error
    path = path.absolute()
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Convert a failure to write to ``path`` inside the block.

    Raises:
        ConfigError: ``path`` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cache must be a directory that can be written and has free space, got {str(path)!r} ({error}); set data.cache to another"
        ) from error


@contextmanager
def process_lock(folder: Path, name: str) -> Iterator[None]:
    """Let only one process of this machine into the block at a time.

    Args:
        folder: folder of the lock's file.
        name: name of the lock.

    Raises:
        ConfigError: the folder cannot be written.
    """
    lock = FileLock(folder / f"{name}.lock")
    with write_errors(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for the process that holds %s", lock.lock_file)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


# ----------------------------------------------------------------------------------------------------------------- entries
def load_content(cache: str | None, name: str, key: Mapping[str, object], decode: Decode) -> Content:
    """The decoded data set that ``key`` identifies. It is decoded into the cache first if it is not there.

    Args:
        cache: the folder of the cache; None: the user's cache folder.
        name: name of the data set; part of the entry's file name.
        key: everything that determines the decoded content, of types that JSON can represent.
        decode: fills the arrays; at most one process calls it at a time.

    Raises:
        ConfigError: the cache cannot be written, or ``decode`` raised one.
    """
    root = cache_directory(cache)
    entry = root / f"{name}-{json_digest({'format': FORMAT, **key})}"
    content = _read_if_intact(entry)
    if content is None:
        with process_lock(root, entry.name):
            content = _read_if_intact(entry)  # another process may have built it while this one waited
            if content is None:
                _build(entry, decode)
                content = _read(entry)
    return content


def _read_if_intact(entry: Path) -> Content | None:
    """The content of an entry; None if there is no entry, or a damaged one."""
    try:
        return _read(entry) if entry.exists() else None
    except _Damaged as error:
        log.warning("cache entry %s is damaged (%s): decoding anew", entry, error)
        return None


def _read(entry: Path) -> Content:
    """Open an entry. Size and checksum of every file are checked once per process."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        _verify(entry, meta)
        arrays = {name: np.load(entry / f"{name}.npy", mmap_mode="c") for name in meta["content"]["files"]}
        unreadable = tuple((str(location), str(reason)) for location, reason in meta["content"].get("unreadable", ()))
        group_names = tuple(map(str, meta["content"].get("group_names", ())))
        return Content(arrays, tuple(meta["content"]["class_names"]), meta["content"]["digest"], unreadable, group_names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(str(error)) from error


def _verify(entry: Path, meta: Mapping[str, Any]) -> None:
    """Compare the entry's files with ``meta``, and ``meta`` with its own checksum."""
    content = meta["content"]
    paths = [entry / f"{name}.npy" for name in content["files"]]
    stats = [path.stat() for path in (entry / "meta.json", *paths)]
    signature = (str(entry), *((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats))
    if signature in _verified:
        return
    if meta["checksum"] != json_digest(content):
        raise _Damaged("meta.json does not match its own checksum")
    for path, expected in zip(paths, content["files"].values()):
        if path.stat().st_size != expected["size"]:
            raise _Damaged(f"{path.name} holds {path.stat().st_size} bytes instead of {expected['size']}")
        if file_digest(path) != expected["checksum"]:
            raise _Damaged(f"{path.name} does not match its checksum")
    _verified.add(signature)


def _build(entry: Path, decode: Decode) -> None:
    """Decode into a temporary folder beside ``entry``, then rename it. The caller holds the entry's lock."""
    log.info("decoding images into %s", entry)
    own = f".{entry.name}.{platform.node()}."
    for orphan in entry.parent.glob(f"{escape(own)}*"):  # left by killed processes: the lock proves that none runs on this machine
        shutil.rmtree(orphan, ignore_errors=True)
    temporary = entry.parent / f"{own}{os.getpid()}"
    try:
        with write_errors(entry.parent):
            temporary.mkdir()
        arrays: dict[str, np.memmap] = {}

        def allocate(name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
            arrays[name] = _allocate(temporary / f"{name}.npy", shape, dtype)
            return arrays[name]

        decoded = decode(allocate)
        with write_errors(entry.parent):
            _finish(temporary, arrays, decoded)
            _publish(temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(built: Path, entry: Path) -> None:
    """Make a folder the entry, unless another machine has built a sound one meanwhile."""
    if _read_if_intact(entry) is not None:
        return
    with suppress(FileNotFoundError):  # a damaged entry; a process that has it open keeps its pages
        entry.rename(built / "damaged")
    try:
        built.rename(entry)
    except OSError:
        if _read_if_intact(entry) is None:
            raise
    shutil.rmtree(entry / "damaged", ignore_errors=True)


def _allocate(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """A new array on disk. Its blocks are reserved now, so that a full disk is an error here and not a crash on writing."""
    with write_errors(path.parent):
        path.unlink(missing_ok=True)  # an array of another shape, which may still be mapped
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _finish(folder: Path, arrays: Mapping[str, np.memmap], decoded: Decoded) -> None:
    """Flush the arrays and describe them in ``meta.json``."""
    files = {}
    for name, array in arrays.items():
        array.flush()
        path = folder / f"{name}.npy"
        files[name] = {"size": path.stat().st_size, "shape": list(array.shape), "checksum": file_digest(path)}
    content: dict[str, Any] = {"files": files, "class_names": list(decoded.class_names), "digest": content_digest(arrays)}
    if decoded.unreadable:
        content["unreadable"] = [list(item) for item in decoded.unreadable]
    if decoded.group_names:
        content["group_names"] = list(decoded.group_names)
    (folder / "meta.json").write_text(json.dumps({"content": content, "checksum": json_digest(content)}, indent=1))
