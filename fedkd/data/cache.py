"""The cache of decoded images: decoded once, then shared as memory-mapped arrays that are checked by their digest."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from fedkd.errors import ConfigError


def content_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Over names, types, shapes and values: the same for the same data, wherever and however it is stored."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        state.update(memoryview(array).cast("B"))
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Over the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def json_digest(value: object) -> str:
    """Over anything that JSON can hold, whatever the order of its keys."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


log = logging.getLogger("fedkd")


FORMAT = 1
"""Counts the layouts of an entry; part of every key, so that a new layout never meets an old entry."""


Allocate = Callable[[str, tuple[int, ...], str], np.ndarray]
"""``(name, shape, dtype) -> array`` on disk, to be filled."""


Decode = Callable[[Allocate], tuple[str, ...]]
"""Allocates and fills the arrays, and gives the names of the classes."""


_verified: set[tuple] = set()
"""Entries that this process has checked, by path and by the stat of every file: a changed file is checked again."""


@dataclass(frozen=True)
class Content:
    """Decoded data: arrays by name, the classes' names, and a digest of the arrays that knows of no path."""

    arrays: dict[str, np.ndarray]
    class_names: tuple[str, ...]
    digest: str


class _Damaged(Exception):
    """Why an entry cannot be trusted."""


def cache_directory(cache: str | None) -> Path:
    """Where entries stand: ``cache``, or ``$XDG_CACHE_HOME/fedkd``, or ``~/.cache/fedkd``. Created if it is missing.

    Raises:
        ConfigError: naming ``cache``, when the directory cannot be created.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedkd"
    path = Path(cache).expanduser().absolute() if cache else home
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write at ``path`` into the error of a user who chose the wrong directory."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cache must be a directory that can be written and has room, got {str(path)!r} ({error}); set data.cache to another"
        ) from error


@contextmanager
def process_lock(directory: Path, name: str) -> Iterator[None]:
    """Let one process of this machine into the block at a time."""
    guard = FileLock(directory / f"{name}.lock")
    with write_errors(directory):
        try:
            guard.acquire(timeout=0)
        except Timeout:
            log.info("waiting for the process that holds %s", guard.lock_file)
            guard.acquire()
    try:
        yield
    finally:
        guard.release()


def load_content(cache: str | None, name: str, key: Mapping[str, object], decode: Decode) -> Content:
    """The content that ``key`` stands for: read from the cache, decoded into it first if need be.

    Args:
        cache: the directory of entries; None is the user's cache directory.
        name: what the entry is called, for people.
        key: everything that determines the decoded content, of types that JSON knows.
        decode: fills the arrays; it is called by at most one process at a time.

    Raises:
        ConfigError: naming ``cache`` when it cannot be written; and what ``decode`` raises.
    """
    root = cache_directory(cache)
    entry = root / f"{name}-{json_digest({'format': FORMAT, **key})}"
    content = _attempt(entry)
    if content is None:
        with process_lock(root, entry.name):
            content = _attempt(entry)  # another process may have built it while this one waited
            if content is None:
                _build(entry, decode)
                content = _read(entry)
    return content


def _attempt(entry: Path) -> Content | None:
    """The entry's content; None if there is none that can be trusted."""
    try:
        return _read(entry) if entry.exists() else None
    except _Damaged as error:
        log.warning("cache entry %s is damaged (%s): decoding anew", entry, error)
        return None


def _read(entry: Path) -> Content:
    """Open an entry, checking every file's size and checksum once per process."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        _verify(entry, meta)
        arrays = {name: np.load(entry / f"{name}.npy", mmap_mode="c") for name in meta["content"]["files"]}
        return Content(arrays, tuple(meta["content"]["class_names"]), meta["content"]["digest"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(str(error)) from error


def _verify(entry: Path, meta: dict) -> None:
    """Compare the entry's files with ``meta``, and ``meta`` with its own checksum."""
    content = meta["content"]
    paths = [entry / f"{name}.npy" for name in content["files"]]
    stats = [path.stat() for path in (entry / "meta.json", *paths)]
    mark = (str(entry), *((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats))
    if mark in _verified:
        return
    if meta["checksum"] != json_digest(content):
        raise _Damaged("meta.json does not match its own checksum")
    for path, expected in zip(paths, content["files"].values()):
        if path.stat().st_size != expected["size"]:
            raise _Damaged(f"{path.name} holds {path.stat().st_size} bytes instead of {expected['size']}")
        if file_digest(path) != expected["checksum"]:
            raise _Damaged(f"{path.name} does not match its checksum")
    _verified.add(mark)


def _build(entry: Path, decode: Decode) -> None:
    """Decode into a directory beside ``entry``, then rename it; whoever calls holds the entry's lock."""
    log.info("decoding images into %s", entry)
    for orphan in entry.parent.glob(f".{entry.name}.*"):  # of builders that were killed: the lock says that none is alive
        shutil.rmtree(orphan, ignore_errors=True)
    temporary = entry.parent / f".{entry.name}.{os.getpid()}"
    try:
        with write_errors(entry.parent):
            temporary.mkdir()
        arrays: dict[str, np.ndarray] = {}
        class_names = decode(lambda name, shape, dtype: arrays.setdefault(name, _allocate(temporary / f"{name}.npy", shape, dtype)))
        with write_errors(entry.parent):
            _finish(temporary, arrays, class_names)
            shutil.rmtree(entry, ignore_errors=True)  # a damaged one; whoever has it open keeps its pages
            temporary.rename(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _allocate(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A new array on disk whose blocks are reserved: a full disk is an error here instead of a crash on writing."""
    with write_errors(path.parent):
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _finish(folder: Path, arrays: Mapping[str, np.memmap], class_names: tuple[str, ...]) -> None:
    """Flush the arrays and describe them in ``meta.json``."""
    files = {}
    for name, array in arrays.items():
        array.flush()
        path = folder / f"{name}.npy"
        files[name] = {"size": path.stat().st_size, "shape": list(array.shape), "checksum": file_digest(path)}
    content = {"files": files, "class_names": list(class_names), "digest": content_digest(arrays)}
    (folder / "meta.json").write_text(json.dumps({"content": content, "checksum": json_digest(content)}, indent=1))
