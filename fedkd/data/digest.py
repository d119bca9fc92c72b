"""Fingerprints of arrays, files and texts: BLAKE2b of 128 bits, in hexadecimal."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np


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
