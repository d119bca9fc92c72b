"""Objects built from a configuration, and the hash that identifies a run."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fedkd.errors import ConfigError

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs what it raises

RUN_KEYS_WITHOUT_EFFECT = ("name", "output", "progress", "engine", "on_client_failure", "retries", "timeout", "checkpoint_every", "tuned_params", "searchpath", "choices", "distill",
    "distill_every", "distill_overrides", "generator_diagnostics_every", "tensorboard",
)  # fmt: skip

PATH_KEYS = ("root", "path", "cache", "download", "trace")


def build(config: DictConfig, part: str, *args: Any, **kwargs: Any) -> Any:
    """The object that ``config[part]`` describes; ``args`` and ``kwargs`` are handed to its ``_target_``.

    Raises:
        ConfigError: as raised by the object, with the path to the part in front of it.
    """
    try:
        return instantiate(config[part], *args, _convert_="all", **kwargs)
    except InstantiationException as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        where = re.search(r"full_key: (\S+)", str(error))
        raise ConfigError(f"{where.group(1) if where else part}.{error.__cause__}") from error.__cause__


def call_part(part: str, maker: Callable[..., Any], *args: Any) -> Any:
    """``maker(*args)``; a ``ValueError`` of it is raised again with the path to the part in front."""
    try:
        return maker(*args)
    except ValueError as error:
        raise ConfigError(f"{part}.{error}") from error


def config_hash(config: DictConfig, digests: Mapping[str, str]) -> str:
    """Twelve hexadecimal digits that stand for everything that can change the result.

    Left out: engine, output, progress and paths. Data and a trace count by the content of ``digests``, the failure policy only where it
    may drop clients.
    """
    node = OmegaConf.to_container(config, resolve=True)
    kept = {key: value for key, value in node.items() if key not in RUN_KEYS_WITHOUT_EFFECT}
    if config.on_client_failure == "drop":
        kept["on_client_failure"] = "drop"
    kept |= {part: without_paths(kept[part]) for part in ("data", "partition", "systems", "public_data")}
    kept = with_class_names(kept)
    return hashlib.sha256(json.dumps([kept, dict(digests)], sort_keys=True).encode()).hexdigest()[:12]


def without_paths(node: Any) -> Any:
    """A part without the keys that say where its files are."""
    return {key: without_paths(value) for key, value in node.items() if key not in PATH_KEYS} if isinstance(node, Mapping) else node


DISTILLATION_KEYS_WITHOUT_EFFECT = (
    "name",
    "checkpoint_every",
    "teacher_run",
    "round",
    "student_init",
    "output",
    "progress",
    "export",
    "retrieval",
    "tuned_params",
    "searchpath",
    "choices",
)


def with_class_names(node: Any) -> Any:
    """A configuration whose ``_target_``s of fedkd are class names alone, so that moving a class to another module changes no hash."""
    if isinstance(node, Mapping):
        return {key: class_name(value) if key == "_target_" else with_class_names(value) for key, value in node.items()}
    return [with_class_names(one) for one in node] if isinstance(node, list) else node


def class_name(target: str) -> str:
    """The last component of a path into fedkd's own packages; any other path as it is."""
    return target.rpartition(".")[2] if target.partition(".")[0] in ("fedkd", "strategies", "simulations") else target
