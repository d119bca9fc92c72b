"""Divergence as a result: the file ``diverged.json`` of a run folder, and the same error at the next launch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedkd.errors import DivergedError
from fedkd.files import write_atomically

NAME = "diverged.json"
"""The file with ``round``, ``client``, ``loss`` and ``message`` of a run that diverged. Values that are not known are null."""


def read_divergence(folder: Path) -> dict[str, Any] | None:
    """What the run in ``folder`` has recorded about its divergence. None if it has not diverged, or if the file cannot be read."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("message"), str) else None


def refuse_to_repeat(folder: Path) -> None:
    """Do not run what has diverged before: the same configuration would diverge again.

    Raises:
        DivergedError: with the recorded message and the remedy.
    """
    if (found := read_divergence(folder)) is not None:
        loss = None if found.get("loss") is None else float(found["loss"])
        error = DivergedError(
            f"{found['message']} (recorded in {folder}; not repeated, as it would diverge again; force=true runs it again)",
            round=found.get("round"), client=found.get("client"), loss=loss,
        )  # fmt: skip
        error.folder = str(folder)
        raise error


@contextmanager
def recorded_divergence(folder: Path) -> Iterator[None]:
    """Record a ``DivergedError`` of the block in ``folder``, unless another run folder has recorded it already."""
    try:
        yield
    except FloatingPointError as error:
        if getattr(error, "folder", None) is None:
            loss = getattr(error, "loss", None)
            content = {
                "round": getattr(error, "round", None),
                "client": getattr(error, "client", None),
                "loss": None if loss is None else str(loss),  # JSON has no NaN
                "message": str(error),
            }
            write_atomically(folder / NAME, (json.dumps(content, indent=1) + "\n").encode())
            if isinstance(error, DivergedError):
                error.folder = str(folder)
        raise
