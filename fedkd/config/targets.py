"""The classes and functions that a configuration may name in ``_target_``, and their import.

A configuration can come from someone else, and importing or calling what it names runs code. So ``_target_`` reaches only fedkd's own
parts, the optimizers of torch, the strategies of Flower, the partitioners of flwr-datasets, and modules that the user names.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from hydra.utils import get_object

from fedkd.errors import ConfigError, one_line, require

SHIPPED = (
    "fedkd.data", "fedkd.partition", "fedkd.models", "fedkd.distillation", "fedkd.federation", "fedkd.training.optimizers", "strategies",
    "simulations.engine", "simulations.trackers",
    "simulations.deployment",
    "simulations.benchmarks.workloads", "torch.optim", "flwr.serverapp.strategy", "flwr_datasets.partitioner",
)  # fmt: skip
"""Packages whose classes and functions every configuration may name."""

EXTRAS = {"flwr_datasets": "flwr-datasets"}
"""Optional packages that a part may name, and the extra of fedkd that installs each."""


def targets(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """``(key, value)`` of every ``_target_`` in nested dictionaries and lists.

    Args:
        node: a configuration or a part of one, as plain values.
        key: path of ``node``.
    """
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        inner = f"{key}.{name}" if key else str(name)
        if name == "_target_":
            yield inner, value
        yield from targets(value, inner)


def check_targets(node: Any, key: str, allowed: Sequence[str]) -> None:
    """Import every ``_target_`` in ``node``.

    Args:
        node: a configuration or a part of one, as plain values.
        key: path of ``node``.
        allowed: modules that the user names, see ``allow_targets``.

    Raises:
        ConfigError: a target is not allowed, or cannot be imported.
    """
    for name, path in targets(node, key):
        resolve_target(path, name, allowed)


def resolve_target(path: Any, key: str, allowed: Sequence[str]) -> Any:
    """The class or function with the dotted path ``path``. Nothing is imported that is not allowed.

    Args:
        path: the value of ``_target_``.
        key: its key, for messages.
        allowed: modules that the user names, see ``allow_targets``.

    Raises:
        ConfigError: the path is not allowed, cannot be imported, or names neither a class nor a function.
    """
    require(isinstance(path, str) and path != "", key, "must name a class or function", path)
    places = (*SHIPPED, *allowed)
    check_place(path, path, key, places)
    try:
        target = get_object(path)
    except Exception as error:
        package = path.partition(".")[0]
        install = f"; pip install 'fedkd[{EXTRAS[package]}]'" if package in EXTRAS and sys.modules.get(package) is None else ""
        raise ConfigError(f"{key} must be importable, got {path!r}: {one_line(error)}{install}") from error
    require(callable(target), key, "must name a class or function", path)
    function = target.func if isinstance(target, partial) else target
    check_place(str(getattr(function, "__module__", None)), path, key, places)  # an allowed module can import one that is not
    return target


def check_place(module: str, path: str, key: str, places: Iterable[str]) -> None:
    """Refuse a module outside the allowed packages.

    Args:
        module: dotted path of the module, or of something in it.
        path: the value of ``_target_``, for the message.
        key: its key.
        places: the allowed packages.

    Raises:
        ConfigError: ``module`` lies in none of ``places``.
    """
    if not any(f"{module}.".startswith(f"{place}.") for place in places):
        root = path.partition(".")[0]
        raise ConfigError(
            f"{key} must be a part of fedkd, an optimizer of torch, a strategy of flwr, a partitioner of flwr_datasets, or a part of a "
            f"module that you name, got {path!r}; if you trust its code, add allow_targets=[{root if module == path else module}]"
        )
