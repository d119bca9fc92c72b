"""Observers of a run: they are told when it begins, of each finished round, and when it ends. They cannot change a result."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedkd.errors import StopRun

SaveCheckpoint = Callable[[str], None]
"""Write the state after the round that has just ended as ``<name>.safetensors`` and ``<name>.json`` into the run folder."""


class RunObserver:
    """The base of all observers. Every method does nothing.

    The methods are called in the driver's process. An exception that a method raises ends the run. ``StopRun``, raised in :meth:`begin` or
    :meth:`round`, ends the run after a checkpoint.
    """

    def begin(self, folder: Path, first: int) -> None:
        """The run begins, or continues.

        Args:
            folder: the run folder. It holds ``config.yaml``, and the rows of all rounds up to the last checkpoint.
            first: the first round (or epoch) that is computed now, >= 1.
        """

    def round(self, number: int, metrics: Mapping[str, Any], clients: Sequence[Mapping[str, Any]], save: SaveCheckpoint) -> None:
        """A round (or epoch) has ended, and its rows are on disk.

        Args:
            number: of the round, >= 1.
            metrics: a copy of the row of ``metrics.csv``.
            clients: copies of the rows of ``clients.csv``; empty in a distillation.
            save: writes a checkpoint of this round under another name.
        """

    def end(self, error: Exception | None) -> None:
        """The run has ended.

        Args:
            error: None if all rounds are done, ``StopRun`` if the run ended early and can be resumed, otherwise the exception that ended
                it.
        """


class Observers:
    """Several observers as one. As a context manager it tells them how the run ends.

    Args:
        observers: called in this order.
    """

    def __init__(self, observers: Sequence[RunObserver] = ()) -> None:
        self._observers = list(observers)
        self._begun: list[RunObserver] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, Exception):
            self._end(error)
        else:  # Ctrl-C, or the end of the process
            self._end(StopRun("interrupted"))

    def __bool__(self) -> bool:
        return bool(self._observers)

    def begin(self, folder: Path, first: int) -> None:
        """Tell all observers that the run begins.

        Raises:
            StopRun: an observer ends the run before its next round.
        """
        stop: StopRun | None = None
        for one in self._observers:
            self._begun.append(one)
            try:
                one.begin(folder, first)
            except StopRun as reason:
                stop = stop or reason
        if stop is not None:
            raise stop

    def round(self, number: int, metrics: Mapping[str, Any], clients: Sequence[Mapping[str, Any]], save: SaveCheckpoint) -> None:
        """Tell all observers of a round. Each is given copies of its own.

        Raises:
            StopRun: an observer ends the run.
        """
        stop: StopRun | None = None
        for one in self._observers:
            try:
                one.round(number, dict(metrics), [dict(row) for row in clients], save)
            except StopRun as reason:
                stop = stop or reason
        if stop is not None:
            raise stop

    def _end(self, error: Exception | None) -> None:
        """Tell all observers that were told of the beginning, whatever one of them raises; the first exception is raised in the end."""
        first: Exception | None = None
        for one in self._begun:
            try:
                one.end(error)
            except Exception as own:
                first = first or own
        self._begun = []
        if first is not None:
            raise first
