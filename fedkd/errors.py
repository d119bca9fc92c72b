"""All exceptions of fedkd, :func:`require`, which checks one value, and :func:`nearest`, which suggests a valid name."""

import difflib
import re
from collections.abc import Iterable


class FedkdError(Exception):
    """The base class of all exceptions that fedkd raises for the user."""


class ConfigError(FedkdError, ValueError):
    """A key, an option, or a value of the configuration is wrong. The message gives the key, the rule, the value, and the remedy."""


class RunFolderError(FedkdError, ValueError):
    """A run folder is missing, corrupt, unfinished, or does not contain the requested data."""


class ReportError(FedkdError, RuntimeError):
    """Some tables or figures of a report failed. All others are written."""


class ClientFailure(FedkdError, RuntimeError):
    """A client failed, and the run's failure policy does not allow the run to continue.

    Args:
        message: what failed.
        is_transient: the same command may succeed, as after a worker process that ended or a timeout.
    """

    def __init__(self, message: str, is_transient: bool = False) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class EngineError(FedkdError, RuntimeError):
    """The engine does not start on this machine, or one of its processes has ended. The message gives the remedy."""


class DivergedError(FedkdError, FloatingPointError):
    """Training diverged: a loss or a state is no longer finite.

    Args:
        message: where, and the remedy.
        round: the server round or the epoch, 1, 2, ...; None where it is not known.
        client: the client; None where the server or a student diverged.
        loss: the loss that is not finite; None where it is not known.
    """

    def __init__(self, message: str, *, round: int | None = None, client: int | None = None, loss: float | None = None) -> None:
        super().__init__(message)
        self.round, self.client, self.loss = round, client, loss
        self.folder: str | None = None
        """The run folder in which the divergence is recorded; None where it is not recorded yet."""


class StopRun(FedkdError):
    """A callback raises it to end a run after a checkpoint. The run stays unfinished and can be resumed."""


def one_line(text: object) -> str:
    """A text, or the message of an exception, without line breaks and repeated spaces."""
    return " ".join(str(text).split())


def is_plain_name(text: object) -> bool:
    """A name for tables: a text of one line, not empty, that no spreadsheet reads as a formula."""
    return isinstance(text, str) and text.strip() != "" and text.isprintable() and not text.startswith(("=", "+", "-", "@"))


def require(holds: bool, name: str, rule: str, value: object) -> None:
    """Raise ``ConfigError("<name> <rule>, got <value>")`` unless ``holds``.

    Args:
        holds: whether the value obeys the rule.
        name: name of the parameter. The configuration puts the path of the object in front of it:
            ``partition.alpha must be > 0, got -1``.
        rule: the rule, and the remedy where the rule does not imply it.
        value: the value that the user set.

    Raises:
        ConfigError: ``holds`` is false.
    """
    if not holds:
        raise ConfigError(f"{name} {rule}, got {value!r}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: ``; did you mean 'fedgen'?``, or an empty string where no known name resembles it.

    A name that differs in upper and lower case alone is the only one. Otherwise names with ``name`` as one of their words come first, such
    as ``resnet18_imagenet`` for ``resnet18``, then the one with the nearest spelling; at most three.

    Args:
        name: the name that the user set.
        known: the valid names.
    """
    known = list(known)
    same = [one for one in known if one.casefold() == name.casefold()][:1]
    parts = [one for one in known if name.casefold() in re.split(r"[._]", one.casefold())]
    found = same or list(dict.fromkeys([*parts[:2], *difflib.get_close_matches(name, known, n=1, cutoff=0.6)]))
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
