"""Settings of a process that computes for a run: threads, memory, and the cores that it may use."""

import atexit
import ctypes
import gc
import os
from functools import cache

import torch


def cores() -> int:
    """The cores that this process may use, which a scheduler or ``taskset`` can have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2
"""glibc's names for what :func:`configure_process` sets, as mallopt takes them."""


@cache
def configure_process() -> None:
    """One thread, and memory that is kept.

    Parallelism is over clients: a second thread in an actor takes the core of another. And a step frees what the next one asks
    for again: with glibc's defaults that memory goes back to the system in between, to be mapped and cleared anew page by page,
    which can cost as much as the step's arithmetic. Elsewhere than on glibc the allocator stays as it is.
    """
    torch.set_num_threads(1)
    gc.freeze()  # what was imported stays until the end: nobody need look through it again and again,
    atexit.register(gc.unfreeze)
    gc.set_threshold(50_000, 20, 20)  # nor through thousands of messages, which are not garbage
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, 1 << 30)
        mallopt(TRIM_THRESHOLD, 1 << 30)
        mallopt(TOP_PAD, 64 << 20)
