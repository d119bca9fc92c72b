"""State on disk: safetensors, written atomically, known by a header of its own."""

import os
from pathlib import Path


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
