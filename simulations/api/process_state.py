"""The state of the caller's process, kept for the time of a call of the Python API."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra

LOGGERS = ("", "fedkd", "flwr", "ray", "hydra")
"""Loggers that a run configures; the first is the root."""


@contextmanager
def preserved_process_state() -> Iterator[None]:
    """Run a block as the command would run it; restore afterwards what belongs to the caller.

    Restored are the number of torch threads (it is 1 in the block, as rounding depends on it), the handlers of signals, the handlers and
    levels of loggers, and Hydra's state. The tuning of malloc and of the garbage collector stays in the process.
    """
    threads = torch.get_num_threads()
    signals = _signals()
    loggers = {name: _logger_state(logging.getLogger(name)) for name in LOGGERS}
    hydra, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        GlobalHydra.instance().hydra = hydra
        for name, state in loggers.items():
            _restore_logger(logging.getLogger(name), *state)
        for number, handler in signals.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _signals() -> dict[signal.Signals, Any]:
    """The handlers of signals; none outside the main thread, which alone may set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return {number: handler for number, handler in found.items() if handler is not None}  # None: set by C code, which cannot be restored


def _logger_state(logger: logging.Logger) -> tuple[int, bool, bool, list[logging.Handler]]:
    """What a run may change of a logger."""
    return logger.level, logger.propagate, logger.disabled, list(logger.handlers)


def _restore_logger(logger: logging.Logger, level: int, propagate: bool, disabled: bool, handlers: list[logging.Handler]) -> None:
    """Set a logger back."""
    logger.setLevel(level)
    logger.propagate, logger.disabled = propagate, disabled
    logger.handlers[:] = handlers


@contextmanager
def without_main_module() -> Iterator[None]:
    """Let processes start that do not run the caller's script again: runs need nothing of it, and a script need not guard its top level."""
    main = sys.modules["__main__"]
    missing = object()
    kept = {name: getattr(main, name, missing) for name in ("__file__", "__spec__")}
    try:
        if kept["__file__"] is not missing:
            del main.__file__
        main.__spec__ = None
        yield
    finally:
        for name, value in kept.items():
            if value is not missing:
                setattr(main, name, value)
