"""Modules outside fedkd that a command may use: those that the user names, and those of the user's own folders."""

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedkd.config.build import OWN_PACKAGES
from fedkd.config.targets import SHIPPED, targets

_GIVEN: set[str] = set()
"""Modules whose classes the user has passed to the Python API."""


_COMPOSED: set[str] = set()
"""Modules that configurations of this process may name."""


def remember(modules: Iterable[str]) -> None:
    """Note the modules that a configuration of the user may name, so that this process can load the models of its runs."""
    _COMPOSED.update(modules)


def remembered(config: DictConfig) -> list[str]:
    """The modules that ``config`` names and that the user's configurations of this process may name, sorted."""
    return sorted(_named(_COMPOSED, config))


def trust(module: str) -> None:
    """Allow the module of a class that the user has passed as an object, in this process."""
    _GIVEN.add(module)


def _named(modules: Iterable[str], config: DictConfig) -> set[str]:
    """The modules that some ``_target_`` of ``config`` lies in."""
    paths = [str(value) for _, value in targets(OmegaConf.to_container(config, resolve=False))]
    return {module for module in modules if any(path.startswith(f"{module}.") for path in paths)}


def allowed_targets(config: DictConfig, named: Iterable[str], folders: Iterable[str | Path]) -> list[str]:
    """The modules that ``_target_`` may name beside the shipped ones, sorted.

    Args:
        config: a composed configuration, or that of a run folder.
        named: modules that the user names, ``allow_targets``.
        folders: the user's folders of ``searchpath``. Their modules are allowed, and those of the working directory too.
    """
    paths = [str(value) for _, value in targets(OmegaConf.to_container(config, resolve=False))]
    foreign = {path.partition(".")[0] for path in paths if not any(path.startswith(f"{place}.") for place in SHIPPED)}
    foreign -= set(OWN_PACKAGES)  # of these the shipped ones alone
    places = [Path(folder).absolute() for folder in folders]
    own = {root for root in foreign if root == "__main__" or _in_folder(root, places) or _in_working_directory(root, Path.cwd())}
    return sorted({*map(str, named), *own, *_named(_GIVEN, config)})


def _in_folder(root: str, folders: Sequence[Path]) -> bool:
    """Whether the module ``root`` stands in one of ``folders``."""
    return _place(root) in folders


def _in_working_directory(root: str, folder: Path) -> bool:
    """The same for the working directory, which a line on standard error says once."""
    found = _place(root) == folder
    if found:
        _announce(root, folder)
    return found


@cache
def _announce(root: str, folder: Path) -> None:
    print(f"note: {root} is a module of the working directory {folder}", file=sys.stderr, flush=True)


def _place(root: str) -> Path | None:
    """The folder that a module or package is imported from. Nothing is imported. None for built-in and unknown modules."""
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    locations = list(spec.submodule_search_locations or [])
    found = locations[0] if locations else spec.origin
    return Path(found).absolute().parent if found and spec.origin not in ("built-in", "frozen") else None
