"""What the machine lends to a command."""

import os


def cores() -> int:
    """The cores that this process may use, which a scheduler or ``taskset`` can have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
