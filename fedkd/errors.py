"""All exceptions of fedkd, and :func:`require`, which checks a value that the user has given."""


class FedkdError(Exception):
    """The base of all exceptions that fedkd raises for the user."""


class ConfigError(FedkdError, ValueError):
    """A key, an option, or a value of the configuration is wrong. The message names the key, the rule, the value, and the remedy."""


class RunFolderError(FedkdError, ValueError):
    """A run folder is missing, corrupt, unfinished, or does not hold what was asked of it."""


class ClientFailure(FedkdError, RuntimeError):
    """A client failed, and the run's failure policy does not allow the run to continue."""


class DivergedError(FedkdError, FloatingPointError):
    """Training diverged: the loss is no longer finite."""


class StopRun(FedkdError):
    """Raised by a callback to end a run after a checkpoint. The run stays unfinished and can be resumed."""


def require(holds: bool, name: str, rule: str, value: object) -> None:
    """Raise ``ConfigError("<name> <rule>, got <value>")`` unless ``holds``.

    Args:
        holds: whether the value obeys the rule.
        name: the parameter as the user writes it. The configuration puts the path in front of it:
            ``partition.alpha must be > 0, got -1``.
        rule: what the value must be, and how to get there.
        value: what was given.

    Raises:
        ConfigError: ``holds`` is false.
    """
    if not holds:
        raise ConfigError(f"{name} {rule}, got {value!r}")
