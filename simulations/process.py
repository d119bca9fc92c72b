"""Settings of a process that trains: threads, memory, and the cores that it may use."""

import atexit
import ctypes
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType

MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2
"""Numbers of the options that :func:`configure_process` passes to glibc's ``mallopt``."""


def cores() -> int:
    """The number of cores that this process may use. A scheduler or ``taskset`` can limit it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def configure_process() -> None:
    """Use one thread, keep freed memory in the process, and let the garbage collector run rarely.

    Clients train in parallel, so a second thread of one worker would take the core of another one.

    Every training step allocates the memory that the step before has freed. By default glibc returns it to the system in between, and the
    system clears it page by page. This can take as long as the arithmetic of the step. On systems without glibc the allocator is not
    changed.
    """
    import torch  # not needed for cores(), which reports use without torch

    torch.set_num_threads(1)
    gc.freeze()  # the objects of imported modules stay until the end, so the collector need not visit them
    atexit.register(gc.unfreeze)
    gc.set_threshold(50_000, 20, 20)  # the objects of many messages would trigger the collector often, and are no garbage
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, 1 << 30)
        mallopt(TRIM_THRESHOLD, 1 << 30)
        mallopt(TOP_PAD, 64 << 20)


class EndedBySignal(BaseException):
    """The handler of a signal has ended the run, as at the time limit of a job. Code that takes exceptions for failures passes it on."""


@contextmanager
def handlers_end_the_run() -> Iterator[None]:
    """In the block an exception of a handler of SIGUSR1 or SIGUSR2 is an :class:`EndedBySignal`.

    Launchers are warned of a time limit by such a signal, which comes while any code runs. The exception that ends the job must not count
    as one of that code, such as that of a client in training.
    """

    def ending(handler: Callable[[int, FrameType | None], object]) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            try:
                handler(number, frame)
            except Exception as error:
                raise EndedBySignal(f"{error}; the same command continues from the last checkpoint") from error

        return handle

    mine = threading.current_thread() is threading.main_thread()  # other threads have no handlers
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)} if mine else {}
    before = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number, handler in before.items():
            signal.signal(number, ending(handler))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
