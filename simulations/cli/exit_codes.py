"""Exit codes of the command, and the one place where exceptions become a line on standard error."""

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from fedkd.errors import ClientFailure, DivergedError, EngineError, FedkdError, ReportError, StopRun, one_line
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

WRITING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOLCK, errno.ENOTDIR, errno.EEXIST)
"""Errors of the system that tell of a place that cannot be written."""

REMEDIES = {
    errno.ENOSPC: "; free space on the disk, or give another output; the same command goes on from the last checkpoint",
    errno.EDQUOT: "; free space in the quota, or give another output; the same command goes on from the last checkpoint",
    errno.EROFS: "; give another output",
    errno.EACCES: "; give another output, or the right to write there",
    errno.ENOLCK: "; give an output on a file system that has locks",
    errno.EMFILE: "; allow more open files (ulimit -n 4096)",
    errno.ENFILE: "; allow more open files on this machine",
    errno.ENAMETOOLONG: "; give shorter names",
}
"""By number of the error: what helps."""

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
"""The user asked for tracebacks. (The command sets the same variable later, so that Hydra raises its errors.)"""


def exit_code(error: BaseException) -> tuple[int, str] | None:
    """The exit code and the text of an error; None for an exception that ends Python itself, such as ``SystemExit``."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted: run the same command to continue from the last checkpoint"
    if isinstance(error, StopRun):
        return OK, f"stopped: {one_line(error)}"
    if isinstance(error, ClientFailure):
        return FAILED, f"error: {one_line(error)}\n{_advice_after_failure(error)}"
    if isinstance(error, (EngineError, ReportError)):
        return FAILED, f"error: {one_line(error)}"
    if isinstance(error, FloatingPointError):  # DivergedError is of this kind too
        folder = getattr(error, "folder", None)
        place = f" in {folder}" if folder else " on disk"
        return (
            FAILED,
            f"error: {one_line(error)}\nThe same command would diverge again. The last sound checkpoint, if there is one, is{place}.",
        )
    if any(one.__module__.partition(".")[0] in ("hydra", "omegaconf") for one in type(error).__mro__) and isinstance(error, Exception):
        return WRONG, f"error: {one_line(explain(error))}"
    if isinstance(error, ValueError):  # ConfigError and RunFolderError are of this kind too
        return WRONG, f"error: {one_line(error)}"
    if _package(error) == "click":  # judged by the command itself
        return None
    if isinstance(error, OSError):
        return FAILED, f"error: {_system_error(error)}"
    if isinstance(error, MemoryError):
        return (
            FAILED,
            f"error: memory must suffice for the run, got {one_line(error) or 'MemoryError'}; choose a smaller model, batch or data set",
        )
    if isinstance(error, Exception):
        return FAILED, f"error: the run ended by {type(error).__name__}: {one_line(error) or 'no message'}"
    return None


def _system_error(error: OSError) -> str:
    """An error of the operating system in one line: the place, what is wrong, and the remedy."""
    reason = error.strerror or one_line(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0, "")
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{str(error.filename)!r} must exist: {reason}"
    place = "" if error.filename is None else f", got {str(error.filename)!r}"
    rule = "output must be a folder that can be written" if error.errno in WRITING else "the system must allow what the run needs"
    return f"{rule}{place}: {reason}{remedy}"


def write_log(error: BaseException) -> str | None:
    """Write the traceback of an error to a new file, and return its path. None where no file can be written."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="fedkd-error-", suffix=".log", delete=False, encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
        return file.name
    except OSError:
        return None


def with_log(error: BaseException, text: str) -> str:
    """The text of :func:`exit_code`, whose first line names a log file with the traceback unless it says all there is to know."""
    log = None if is_plain(error) else write_log(error)
    if log is None:
        return text
    first, newline, rest = text.partition("\n")
    return f"{first} (traceback: {log}){newline}{rest}"


def is_plain(error: BaseException) -> bool:
    """Whether the line says all there is to know: a rule of fedkd's own that the request breaks, a divergence, or a signal."""
    cause = error.__cause__
    known = cause is None or isinstance(cause, (FedkdError, OSError)) or _package(cause) in ("hydra", "omegaconf")
    refused = isinstance(error, FedkdError) and isinstance(error, ValueError) and known
    return refused or isinstance(error, (KeyboardInterrupt, StopRun, DivergedError)) or _package(error) in ("hydra", "omegaconf")


def _package(error: BaseException) -> str:
    """The package that an exception's class comes from."""
    return type(error).__module__.partition(".")[0]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn exceptions into one line on standard error and an exit code.

    The line names a log file with the traceback, unless it is the user's own mistake or a divergence. ``HYDRA_FULL_ERROR=1`` shows the
    traceback instead.
    """
    try:
        yield
    except BaseException as error:
        found = exit_code(error)
        if found is None or (FULL_ERROR and not isinstance(error, KeyboardInterrupt)):
            raise
        code, text = found
        print(with_log(error, text), file=sys.stderr, flush=True)
        sys.exit(code)


def _advice_after_failure(error: ClientFailure) -> str:
    """What helps after a failure of a client: the same command only where the failure may have been an accident."""
    if error.is_transient:
        return "All rounds up to the last checkpoint are on disk; run the same command to continue."
    return (
        "All rounds up to the last checkpoint are on disk. The client would fail again: remove the cause, then run the same command to "
        "continue, or leave such clients out with on_client_failure=drop."
    )
