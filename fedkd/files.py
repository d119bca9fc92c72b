"""Files that are written atomically, and the version of the files in a run folder. This module needs no torch."""

import os
from pathlib import Path

SCHEMA_VERSION = 2
"""Version of the files in a run folder. A folder of another version is refused."""


def write_atomically(path: Path, content: bytes) -> None:
    """``path`` holds all of ``content`` or what it held before, whatever happens in between.

    The temporary has a fixed name: a folder has one writer, and what a killed one left is overwritten.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
