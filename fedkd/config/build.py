"""Objects built from a configuration, and the hash that identifies a run."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedkd.config.targets import check_targets
from fedkd.errors import ConfigError, FedkdError, one_line

RUN_KEYS_WITHOUT_EFFECT = (
    "name", "output", "progress", "engine", "on_client_failure", "retries", "timeout", "checkpoint_every", "tuned_params", "searchpath",
    "allow_targets", "choices", "distill", "distill_every", "distill_overrides", "generator_diagnostics_every", "tracker", "force",
    "accept_code", "objective",
)  # fmt: skip
"""Keys of a federated run that cannot change its result."""

DISTILLATION_KEYS_WITHOUT_EFFECT = (
    "name", "checkpoint_every", "teacher_run", "paths", "round", "student_init", "output", "progress", "export", "retrieval",
    "tuned_params", "searchpath", "allow_targets", "choices", "force", "accept_code", "objective", "tracker",
)  # fmt: skip
"""Keys of a distillation that cannot change its result, or whose effect is hashed by content."""

NEUTRAL_PARTS = {"aggregator": "Mean", "server_optimizer": "NoServerOptimizer", "drift": "NoDrift"}
"""Parts of a federated run with the class that leaves everything as it is."""

NEUTRAL_KEYS = (("model", "embedding_size"), ("data", "group_column"), ("data", "groups"), ("shift", "label_noise_matrix"))
"""Keys of a part, of later versions, that leave everything as it is where they are null."""

PATH_KEYS = ("root", "path", "cache", "download", "trace", "skip_unreadable")
"""Keys of a part that tell where files are, and which are read. The files' content is hashed instead."""

OWN_PACKAGES = ("fedkd", "strategies", "simulations")

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # Hydra logs every exception that it also raises


# ------------------------------------------------------------------------------------------------------------------ objects
def build(config: DictConfig, part: str, *args: Any, **kwargs: Any) -> Any:
    """The object that ``config[part]`` describes. Its ``_target_`` is called with ``args`` and ``kwargs`` in addition.

    Raises:
        ConfigError: a ``_target_`` is not allowed, or the object refuses a value; the message begins with the key.
    """
    check_targets(OmegaConf.to_container(config[part]), part, OmegaConf.select(config, "allow_targets") or [])
    try:
        return instantiate(config[part], *args, _convert_="all", **kwargs)
    except InstantiationException as error:
        full_key = re.search(r"full_key: (\S+)", str(error))
        raise located(full_key.group(1) if full_key else part, error.__cause__ or error) from error.__cause__
    except (OmegaConfBaseException, HydraException) as error:
        raise located(part, error) from error


def call_part(part: str, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, where ``function`` is an object of the configuration, or a method of one.

    Raises:
        ConfigError: the call raises an exception; the message begins with ``part``.
    """
    try:
        return function(*args)
    except Exception as error:
        if isinstance(error, FedkdError) and not isinstance(error, ValueError):
            raise
        raise located(part, error) from error


def located(key: str, error: BaseException) -> ConfigError:
    """The error of a part, as one line that begins with its key.

    A message of :func:`fedkd.errors.require` begins with a parameter of the part, which the key stands before, also if another
    name follows in parentheses. Any other one, such as that of a file or of code of the user's, comes after the key.

    Args:
        key: path of the part.
        error: raised by the part.
    """
    text = one_line(error)
    if isinstance(error, ValueError) and re.match(r"[A-Za-z_][\w.]*(\[\S*\])?( \([^()]*\))? (must|is) ", text):
        return ConfigError(f"{key}.{text}")
    if isinstance(error, FedkdError):
        return ConfigError(f"{key}: {text}")
    return ConfigError(f"{key} must be a part that can be built and called here, got {type(error).__name__}: {text or 'no message'}")


# ------------------------------------------------------------------------------------------------------------------- hashes
def config_hash(config: DictConfig, digests: Mapping[str, str], without: Sequence[str] = ()) -> str:
    """Twelve hexadecimal digits that identify a federated run by everything that can change its result.

    Keys without an effect and paths are left out. The failure policy is included only if it may drop clients.

    Args:
        config: configuration of the run.
        digests: hash of the content of each data set and file, by name.
        without: further keys that are left out.
    """
    node = to_dict(config)
    kept = {key: value for key, value in node.items() if key not in RUN_KEYS_WITHOUT_EFFECT and key not in without}
    if config.on_client_failure == "drop":
        kept["on_client_failure"] = "drop"
    if config.max_update_norm is None:  # a key that leaves everything as it is
        kept.pop("max_update_norm")
    if config.evaluation.clients is None:
        kept["evaluation"] = {key: value for key, value in kept["evaluation"].items() if key != "clients"}
    for part, target in NEUTRAL_PARTS.items():
        if class_name(str((kept.get(part) or {}).get("_target_"))) in (target, "None"):
            kept.pop(part, None)
    for part, key in NEUTRAL_KEYS:
        if kept[part].get(key, "") is None:
            kept[part] = {name: value for name, value in kept[part].items() if name != key}
    kept |= {part: without_paths(kept[part]) for part in ("data", "partition", "systems", "public_data")}
    kept = with_class_names(kept)
    return hashlib.sha256(json.dumps([kept, dict(digests)], sort_keys=True).encode()).hexdigest()[:12]


def has_drift(config: DictConfig) -> bool:
    """Whether the clients' data change during a run."""
    return bool(config.get("drift")) and class_name(str(config.drift.get("_target_"))) != NEUTRAL_PARTS["drift"]


def without_paths(node: Any) -> Any:
    """A part of a configuration without the keys :data:`PATH_KEYS`, at any depth."""
    return {key: without_paths(value) for key, value in node.items() if key not in PATH_KEYS} if isinstance(node, Mapping) else node


def with_class_names(node: Any) -> Any:
    """A configuration in which ``_target_`` of fedkd's own classes is the class name alone. Moving a class then changes no hash."""
    if isinstance(node, Mapping):
        return {key: class_name(value) if key == "_target_" else with_class_names(value) for key, value in node.items()}
    return [with_class_names(item) for item in node] if isinstance(node, list) else node


def class_name(target: str) -> str:
    """The class name of a dotted path into fedkd's own packages. Any other path is returned as it is."""
    return target.rpartition(".")[2] if target.partition(".")[0] in OWN_PACKAGES else target


def unresolved(error: OmegaConfBaseException, key: str = "a key") -> ConfigError:
    """The error for an interpolation that cannot be resolved. It names the key that OmegaConf names, or else ``key``."""
    return ConfigError(f"{error.full_key or key} must hold an interpolation that can be resolved: {str(error).splitlines()[0]}")


def to_dict(config: DictConfig) -> dict[str, Any]:
    """A resolved configuration as nested dictionaries and lists.

    Raises:
        ConfigError: an interpolation cannot be resolved.
    """
    try:
        node = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise unresolved(error) from error
    assert isinstance(node, dict), "a configuration is a dictionary"
    return {str(key): value for key, value in node.items()}
