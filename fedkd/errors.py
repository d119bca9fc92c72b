"""All exceptions of fedkd, :func:`require`, which checks one value, and :func:`nearest`, which suggests a valid name."""

import difflib
from collections.abc import Iterable


class FedkdError(Exception):
    """The base class of all exceptions that fedkd raises for the user."""


class ConfigError(FedkdError, ValueError):
    """A key, an option, or a value of the configuration is wrong. The message gives the key, the rule, the value, and the remedy."""


class RunFolderError(FedkdError, ValueError):
    """A run folder is missing, corrupt, unfinished, or does not contain the requested data."""


class ClientFailure(FedkdError, RuntimeError):
    """A client failed, and the run's failure policy does not allow the run to continue."""


class DivergedError(FedkdError, FloatingPointError):
    """Training diverged: the loss is no longer finite."""


class StopRun(FedkdError):
    """A callback raises it to end a run after a checkpoint. The run stays unfinished and can be resumed."""


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

    Args:
        name: the name that the user set.
        known: the valid names.
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""
