"""Helpers of tests that kill runs and start them again."""

from collections.abc import Sequence
from pathlib import Path

from tests.processes import TINY, Ended, differing, quick

LONG = (*TINY, "rounds=30", "output=runs")
"""Overrides of a run that lives long enough to be interrupted."""

LOCAL = ("engine=local", *LONG)
"""The same run in one process."""

SHORT = ("engine=local", *TINY, "rounds=15", "output=runs")
"""Overrides of a run that is interrupted once."""


def check_resumed(folder: Path, uninterrupted: Path, words: Sequence[str] = SHORT) -> Ended:
    """Start the run of ``folder`` again, and check that its files are those of an uninterrupted run. Returns what the command said."""
    ended = quick(folder.parents[2], *words)
    assert ended.code == 0 and ended.folder == folder, ended.err
    assert list(differing(folder, uninterrupted)) == []
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]
    return ended


def check_refused(folder: Path, *words: str) -> None:
    """Start the run of ``folder`` again, and check that it ends with a one-line error and changes no file."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    ended = quick(folder.parents[2], *SHORT)
    assert ended.code == 2 and ended.out == "" and len(ended.err.strip().splitlines()) == 1
    assert all(word in ended.err for word in words), ended.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
