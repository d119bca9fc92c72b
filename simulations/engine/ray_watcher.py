"""A script that runs beside a process that has started Ray. When that process ends, it ends Ray's processes and removes Ray's files.

``python ray_watcher.py FOLDER PARENT`` waits until its standard input is closed or the process PARENT is gone, in whatever way: at its end,
by SIGTERM, by SIGKILL. Ray itself leaves some of its processes behind after a SIGKILL, and its files always. The script uses the standard
library alone, so it starts at once and needs little memory.
"""

import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

MARK = "FEDKD_RAY_FOLDER"
"""An environment variable of all processes of one Ray instance: the folder of its files."""

PATIENCE = 30.0
"""Seconds in which processes must end after SIGKILL. The kernel can delay it while it writes their memory to disk."""

INTERVAL = 0.05
"""Seconds between two searches for processes."""

EMPTY_SEARCHES = 40
"""Searches in a row without a process after which all have ended. A process has no environment for a moment while it starts a program.

They are counted, as a machine that stands still for some seconds says nothing about processes that are starting.
"""


def processes_of(folder: str) -> list[int]:
    """The living processes of the Ray instance whose files are in ``folder``."""
    mark, found = os.fsencode(f"{MARK}={folder}"), []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it has ended, or belongs to another user
            continue
    return found


def end_ray(folder: str) -> None:
    """End all processes of the Ray instance whose files are in ``folder``, and remove the folder."""
    last, empty = time.monotonic() + PATIENCE, 0
    while empty < EMPTY_SEARCHES and time.monotonic() < last:
        empty += 1
        for process in processes_of(folder):
            empty = 0
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(INTERVAL)
    shutil.rmtree(folder, ignore_errors=True)


def main(folder: str, parent: int) -> None:
    """Wait for the end of the process ``parent``, then end Ray. Signals that end all processes of a job or a terminal are ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == parent and not select.select([sys.stdin], [], [], 1.0)[0]:
        pass  # a child that the parent has forked can hold the other end of the pipe, so its end is not the only sign
    end_ray(folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
