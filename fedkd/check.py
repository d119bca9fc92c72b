"""Errors for the user: the rule, what was got, what to do."""


def require(holds: bool, name: str, rule: str, value: object) -> None:
    """Raise ``ValueError("<name> <rule>, got <value>")`` unless ``holds``.

    ``name`` is the parameter as the user writes it; the configuration puts the path in front of it
    (``partition.alpha must be > 0, got -1``).
    """
    if not holds:
        raise ValueError(f"{name} {rule}, got {value!r}")
