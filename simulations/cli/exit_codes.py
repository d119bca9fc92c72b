"""Exit codes of the command, and the one place where exceptions become a line on standard error."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedkd.errors import ClientFailure, EngineError, ReportError, StopRun
from simulations.overrides import explain

OK = 0
"""All that was asked for is done."""
FAILED = 1
"""A run failed: a client failure under the policy, the end of Ray, divergence, one run of a sweep, a disk that cannot be written, or a part
of a report."""
WRONG = 2
"""The request is wrong: an unknown option, key or value, no such folder, or nothing to report."""
MISSING = 3
"""``fedkd reproduce --plan``: runs are missing."""
INTERRUPTED = 130
"""SIGINT. The same command goes on from the last checkpoint."""
TERMINATED = 143
"""SIGTERM, as a shell shows a process that the signal has ended. The same command goes on from the last checkpoint."""

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
"""The user asked for tracebacks. (The command sets the same variable later, so that Hydra raises its errors.)"""


def exit_code(error: BaseException) -> tuple[int, str] | None:
    """The exit code and the text of an error of a run or of its user; None for an error in fedkd's own code."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted: run the same command to continue from the last checkpoint"
    if isinstance(error, StopRun):
        return OK, f"stopped: {_line(error)}"
    if isinstance(error, ClientFailure):
        return FAILED, f"error: {_line(error)}\n{_advice_after_failure(error)}"
    if isinstance(error, (EngineError, ReportError)):
        return FAILED, f"error: {_line(error)}"
    if isinstance(error, FloatingPointError):  # DivergedError is of this kind too
        folder = getattr(error, "folder", None)
        place = f" in {folder}" if folder else " on disk"
        return (
            FAILED,
            f"error: {_line(error)}\nThe same command would diverge again. The last sound checkpoint, if there is one, is{place}.",
        )
    if any(one.__module__.partition(".")[0] in ("hydra", "omegaconf") for one in type(error).__mro__) and isinstance(error, Exception):
        return WRONG, f"error: {_line(explain(error))}"
    if isinstance(error, ValueError):  # ConfigError and RunFolderError are of this kind too
        return WRONG, f"error: {_line(error)}"
    if isinstance(error, OSError) and error.filename is not None and not isinstance(error, FileNotFoundError):
        return FAILED, f"error: output must be a folder that can be written, got {str(error.filename)!r}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        return FAILED, f"error: output must be a folder that can be written: {error.strerror}"
    return None


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn exceptions into one line on standard error and an exit code.

    Errors of fedkd's own code keep their traceback, and all do where ``HYDRA_FULL_ERROR=1`` was set.
    """
    try:
        yield
    except BaseException as error:
        found = exit_code(error)
        if found is None or (FULL_ERROR and not isinstance(error, KeyboardInterrupt)):
            raise
        code, text = found
        print(text, file=sys.stderr, flush=True)
        sys.exit(code)


def _advice_after_failure(error: ClientFailure) -> str:
    """What helps after a failure of a client: the same command only where the failure may have been an accident."""
    if error.is_transient:
        return "All rounds up to the last checkpoint are on disk; run the same command to continue."
    return (
        "All rounds up to the last checkpoint are on disk. The client would fail again: remove the cause, then run the same command to "
        "continue, or leave such clients out with on_client_failure=drop."
    )


def _line(error: object) -> str:
    """A message without line breaks."""
    return " ".join(str(error).split())
