"""One run of a sweep, in a process of its own, that tells whoever watches how it gets on and ends with them."""

import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Self

from omegaconf import DictConfig

from simulations.command import explain
from simulations.run import execute


class Teller:
    """The progress of a run, told to whoever watches."""

    def __init__(self, connection: Connection, total: int, done: int) -> None:
        self._connection = connection
        connection.send(("begin", (total, done)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to be put back."""

    def advance(self, row: Mapping[str, float]) -> None:
        """Tell of a round."""
        self._connection.send(("row", dict(row)))


TRACEBACK = re.compile(r"Traceback \(most recent call last\):.*; (?=[\w.]*(Error|Exception)\b)")


def work(config: DictConfig, connection: Connection, log: Path) -> None:
    """One run, in a process of its own; what it prints goes to ``log``, and why it failed to ``connection``."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it says when it ends
    signal.signal(signal.SIGTERM, interrupt)
    with open(log, "w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)

    def shown(config: DictConfig, first: int) -> AbstractContextManager:
        return Teller(connection, config.rounds, first - 1)

    try:
        execute(config, shown=shown)
        connection.send(("end", None))
    except KeyboardInterrupt:
        connection.send(("end", "interrupted"))
    except BaseException as error:
        connection.send(("end", one_line(error)))
        raise


def one_line(error: BaseException) -> str:
    """What is wrong, without line breaks, and of a traceback its end alone: the log has the rest."""
    text = " ".join((explain(error) if isinstance(error, Exception) else str(error)).split())
    return TRACEBACK.sub("", text) or type(error).__name__


def interrupt(number: int, frame: object) -> None:
    """As Ctrl-C does."""
    raise KeyboardInterrupt


def die_with_parent() -> None:
    """End this process, as by SIGKILL, when the one that asked for it is no more, however that ended."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()
