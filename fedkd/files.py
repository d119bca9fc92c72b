"""Atomic writing of files, and the schema version of run folders. This module needs no torch."""

import os
from pathlib import Path

SCHEMA_VERSION = 2
"""Version of the files in a run folder. A folder of another version is refused."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``. After a crash the file holds either its old content or all of the new content.

    The temporary file has a fixed name, because a folder has one writer. A temporary file of a killed process is overwritten.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
