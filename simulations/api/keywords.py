"""Keyword arguments of the Python API as words of the command: ``partition__alpha=[0.1, 1]`` is ``partition.alpha=0.1,1``."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.errors import ConfigError, require
from simulations.experiments.grid import expand
from simulations.overrides import options, quoted
from simulations.user_modules import trust

PLAIN = re.compile(r"[A-Za-z0-9_./:+-]+")
"""Texts that Hydra's grammar takes without quotes."""

BASE = "fedavg"
"""The option that a strategy's class begins with where none of its bases has an option: the switches that every strategy has."""


def combinations(overrides: Sequence[str], keys: Mapping[str, Any]) -> list[list[str]]:
    """The words of each run: all combinations of the values that lists hold, the last one varying fastest.

    Args:
        overrides: words of the command, sweeps such as ``seed=0,1`` among them.
        keys: overrides by name, two underscores for a dot. A list is swept, a tuple is one value, a class is a strategy.

    Raises:
        ConfigError: a word or a value cannot be understood.
    """
    for word in overrides:
        require(isinstance(word, str), "overrides", "must be words KEY=VALUE", word)
    places = [*overrides, *([f"searchpath={text(keys['searchpath'], 'searchpath')}"] if "searchpath" in keys else [])]
    strategy = keys.get("strategy")
    added = any(isinstance(one, type) for one in (strategy if isinstance(strategy, list) else [strategy]))  # its keys are in no yaml
    alternatives = []
    for name, value in keys.items():
        key = name.replace("__", ".")
        alternatives.append(_alternatives(f"++{key}" if added and key.startswith("strategy.") else key, value, places))
    known = expand(overrides) if overrides else [[]]
    return [[*first, *itertools.chain(*rest)] for first, *rest in itertools.product(known, *alternatives)]


def single(overrides: Sequence[str], keys: Mapping[str, Any]) -> list[str]:
    """The words of one run.

    Raises:
        ConfigError: a key has several values.
    """
    found = combinations(overrides, keys)
    several = {name: value for name, value in keys.items() if isinstance(value, list) and len(value) > 1}
    name, value = next(iter(several.items()), ("overrides", list(overrides)))
    require(len(found) == 1, name, "must be one value here (a tuple is one value)", value)
    return found[0]


def _alternatives(key: str, value: Any, overrides: Sequence[str]) -> list[list[str]]:
    """The words of each value of a key."""
    if isinstance(value, list):
        require(len(value) > 0, key, "must hold one value at least where it is a list (a tuple is one value, () is an empty one)", value)
        return [_words(key, one, overrides) for one in value]
    return [_words(key, value, overrides)]


def _words(key: str, value: Any, overrides: Sequence[str]) -> list[str]:
    """The words of one value."""
    if key == "strategy" and isinstance(value, type):
        return strategy_words(value, overrides)
    return [f"{key}={text(value, key)}"]


def text(value: Any, key: str = "value") -> str:
    """A value in Hydra's grammar.

    Args:
        value: a number, a text, a truth value, None, a path, or a tuple, list or mapping of such.
        key: named in the error.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, Path)):
        return _quoted(str(value))
    if isinstance(value, (tuple, list, np.ndarray)):
        return "[" + ",".join(text(one, key) for one in value) + "]"
    if isinstance(value, Mapping):
        for name in value:
            require(isinstance(name, str) and PLAIN.fullmatch(name) is not None, key, "must have keys without spaces and punctuation", name)
        return "{" + ",".join(f"{name}: {text(one, key)}" for name, one in value.items()) + "}"
    raise ConfigError(f"{key} must be a number, a text, a truth value, None, a tuple or a dict, got {value!r}")


def _quoted(value: str) -> str:
    """A text, in quotes where it holds characters of Hydra's grammar."""
    if PLAIN.fullmatch(value):
        return value
    return quoted(value)


def strategy_words(kind: type, overrides: Sequence[str] = ()) -> list[str]:
    """The words that choose a class as the strategy.

    The values that the class inherits come from the option of its nearest base that has one, otherwise from ``strategy=fedavg``. A class of
    Flower's own brings all its values itself.

    Args:
        kind: a class of a module, or of ``__main__``.
        overrides: words; only ``searchpath`` counts.

    Raises:
        ConfigError: the class cannot be found by its name.
    """
    trust(kind.__module__)
    require("<locals>" not in kind.__qualname__, "strategy", "must be a class at the top of a module or of the notebook", kind.__qualname__)
    targets = {_target_of(path): name for name, path in reversed(options("strategy", overrides).items())}
    bases = [f"{one.__module__}.{one.__qualname__}" for one in kind.__mro__]
    own = [targets[name] for name in bases if name in targets]
    if not own and "fedkd.strategy.Strategy" not in bases:
        return ["~strategy", f"+strategy._target_={bases[0]}"]
    return [f"strategy={own[0] if own else BASE}", f"strategy._target_={bases[0]}"]


def _target_of(path: Path) -> str:
    """The class that an option builds; empty where the file does not say it itself."""
    found = re.search(r"^_target_: *(\S+)", path.read_text(encoding="utf-8-sig"), re.MULTILINE)
    return found[1] if found else ""


def is_main(target: str) -> bool:
    """A class of the script or notebook that calls, which no other process can import."""
    return target.startswith("__main__.")
