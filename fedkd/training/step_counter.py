"""Progress of trainings: the steps of :func:`fedkd.training.loop.fit` are counted for whoever asks."""

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Self

INTERVAL = 0.5
"""Seconds between two reports."""


@dataclass(frozen=True)
class StepCount:
    """Steps of a training under way.

    Args:
        done: steps that are done.
        total: all steps; 0 if their number is not known.
        seconds: wall-clock time in seconds since the first step began.
    """

    done: int
    total: int
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """The time that the other steps take at the same speed, in seconds. None if the number of steps is not known."""
        return self.seconds / self.done * max(self.total - self.done, 0) if self.total and self.done else None


class StepCounter:
    """Counts the steps of all trainings in its ``with`` blocks, and reports them twice a second. It changes no result.

    Trainings in other threads and processes are not counted.

    Args:
        report: called with the count.
        total: number of all steps; 0 if it is not known.
    """

    def __init__(self, report: Callable[[StepCount], None], total: int = 0) -> None:
        self._report, self._total = report, total
        self._done, self._seconds, self._reported = 0, 0.0, -INTERVAL

    def __enter__(self) -> Self:
        self._token, self._begin = _counter.set(self), time.monotonic() - self._seconds
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._seconds = time.monotonic() - self._begin
        _counter.reset(self._token)

    def step(self) -> None:
        """Count one step."""
        self._done += 1
        seconds = time.monotonic() - self._begin
        if seconds - self._reported >= INTERVAL or self._done == self._total:
            self._reported = seconds
            self._report(StepCount(self._done, self._total, seconds))


_counter: ContextVar[StepCounter | None] = ContextVar("step_counter", default=None)


def count_step() -> None:
    """Count one step of a training, if somebody asks."""
    if (counter := _counter.get()) is not None:
        counter.step()
