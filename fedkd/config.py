"""The run's schema, and parts built from their own signatures. (The only Hydra import in fedkd.)

There are two schemas and no third place: the run is the dataclass of fedkd.schema; a part (strategy, data, model, ...) is described by
the signature that its ``_target_`` names. Defaults stand in conf/ alone.
"""

import hashlib
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from fedkd.check import require
from fedkd.schema import Composed, Run
from fedkd.values import check_optimizer, check_type

ConfigStore.instance().store(name="schema", node=Composed)
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs what it raises

PARTS = ("data", "partition", "shift", "systems", "public", "model", "optimizer", "strategy", "engine")
WITHOUT_EFFECT = ("name", "output", "progress", "engine", "on_client_failure", "retries", "timeout", "checkpoint_every", "tuned", "choices", "distill",
    "distill_every", "distill_with", "diagnose_every", "tensorboard",
)  # fmt: skip
PLACES = ("root", "path", "cache", "download", "trace")
EXTRAS = {"flwr_datasets": "flwr-datasets"}
"""Packages that parts may name and that need not be installed, and the extra that brings each."""


def check(config: DictConfig) -> None:
    """Everything that the run's own keys must obey, before any work.

    Raises:
        ValueError: naming the key, the rule and the value.
    """
    known = [one.name for one in fields(Run)]
    for key in config:
        require(key in known, str(key), f"must be a key of the run ({', '.join(known)})", config[key])
    for key in (
        "rounds",
        "num_clients",
        "clients_per_round",
        "batch_size",
        "checkpoint_every",
        "evaluation.every",
        "evaluation.batch_size",
    ):
        value = OmegaConf.select(config, key)
        require(value is not None and value >= 1, key, "must be >= 1", value)
    population = f"must be at most num_clients ({config.num_clients})"
    require(config.clients_per_round <= config.num_clients, "clients_per_round", population, config.clients_per_round)
    steps, epochs = config.local_steps, config.local_epochs
    require((steps is None) != (epochs is None), "local_steps", f"or local_epochs must be set, and not both (local_epochs={epochs})", steps)
    require(
        (steps or epochs or 0) >= 1,
        "local_steps" if epochs is None else "local_epochs",
        "must be >= 1",
        steps if epochs is None else epochs,
    )
    chunk = config.cohort
    require(chunk == "auto" or (isinstance(chunk, int) and chunk >= 1), "cohort", "must be >= 1, or auto", chunk)
    choices = {
        "on_client_failure": ("raise", "retry", "drop"),
        "evaluation.examples": ("test", "validation"),
        "evaluation.shards": ("own", "all"),
    }
    for key, allowed in choices.items():
        value = OmegaConf.select(config, key)
        require(value in allowed, key, f"must be one of {', '.join(allowed)}", value)
    require(0 <= config.validation < 1, "validation", "must be a share in 0..1, 1 excluded (0 holds nothing out)", config.validation)
    held_out = config.evaluation.examples == "test" or config.validation > 0
    require(held_out, "validation", "must be > 0 where evaluation.examples=validation", config.validation)
    require(config.retries >= 0, "retries", "must be >= 0", config.retries)
    require(config.timeout > 0, "timeout", "must be > 0 seconds", config.timeout)
    every = config.distill_every
    fits = every is None or (every >= 1 and every % config.checkpoint_every == 0)
    require(fits, "distill_every", f"must be null, or a multiple of checkpoint_every ({config.checkpoint_every})", every)
    every = config.diagnose_every
    require(every is None or every >= 1, "diagnose_every", "must be >= 1 rounds, or null for never", every)
    check_common(config)
    for part in PARTS:
        check_types(OmegaConf.to_container(config[part], resolve=True), part)


def check_common(config: DictConfig) -> None:
    """The keys that runs and distillations have in common.

    Raises:
        ValueError: naming the key, the rule and the value.
    """
    precisions = ("float32", "float64", "bfloat16")
    require(config.precision in precisions, "precision", f"must be one of {', '.join(precisions)}", config.precision)
    require(re.fullmatch(r"cpu|cuda(:\d+)?", config.device) is not None, "device", "must be cpu, cuda or cuda:<number>", config.device)
    require(config.name != "" and not config.name.startswith(("/", ".")), "name", "must be a folder name", config.name)


def check_types(node: Mapping[str, Any], key: str) -> None:
    """Compare a part's values with the annotations of the signature that its ``_target_`` names, and its parts' likewise.

    Raises:
        ValueError: naming the key, the rule and the value.
    """
    require("_target_" in node, f"{key}._target_", "must name a class or function", node)
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        root = str(node["_target_"]).partition(".")[0]
        advice = f"; pip install 'fedkd[{EXTRAS[root]}]'" if root in EXTRAS and sys.modules.get(root) is None else ""
        raise ValueError(f"{key}._target_ must be importable, got {node['_target_']!r}: {' '.join(str(error).split())}{advice}") from error
    require(callable(target), f"{key}._target_", "must name a class or function", node["_target_"])
    signature = inspect.signature(target)
    known = {name for name, p in signature.parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    open_ended = any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values())
    hints = {name: p.annotation for name, p in signature.parameters.items()}
    for name, value in node.items():
        if name in ("_target_", "_partial_"):
            continue
        require(
            name in known or open_ended, f"{key}.{name}", f"must be a parameter of {target.__name__} ({', '.join(sorted(known))})", value
        )
        if isinstance(value, Mapping) and "_target_" in value:
            check_types(value, f"{key}.{name}")
        elif isinstance(value, Mapping) and value and all(isinstance(one, Mapping) for one in value.values()):
            for inner, one in value.items():
                check_types(one, f"{key}.{name}.{inner}")
        elif name in hints:
            check_type(hints[name], value, f"{key}.{name}")
    if not node.get("_partial_"):
        needed = {name for name in known if signature.parameters[name].default is inspect.Parameter.empty}
        require(needed <= set(node), key, f"must give all that {target.__name__} needs; missing are", sorted(needed - set(node)))
    elif inspect.isclass(target) and issubclass(target, torch.optim.Optimizer):
        check_optimizer(target, {name: value for name, value in node.items() if name not in ("_target_", "_partial_")}, key)


def build(config: DictConfig, part: str, *args: Any, **kwargs: Any) -> Any:
    """The object that ``config[part]`` describes; ``args`` and ``kwargs`` are handed to its ``_target_``.

    Raises:
        ValueError: as raised by the object, with the path to the part in front of it.
    """
    try:
        return instantiate(config[part], *args, _convert_="all", **kwargs)
    except InstantiationException as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        where = re.search(r"full_key: (\S+)", str(error))
        raise ValueError(f"{where.group(1) if where else part}.{error.__cause__}") from error.__cause__


def make(part: str, maker: Callable[..., Any], *args: Any) -> Any:
    """``maker(*args)``; a ``ValueError`` of it is raised again with the path to the part in front."""
    try:
        return maker(*args)
    except ValueError as error:
        raise ValueError(f"{part}.{error}") from error


def identity(config: DictConfig, digests: Mapping[str, str]) -> str:
    """Twelve hexadecimal digits that stand for everything that can change the result.

    Left out: engine, output, progress and paths. Data and a trace count by the content of ``digests``, the failure policy only where it
    may drop clients.
    """
    node = OmegaConf.to_container(config, resolve=True)
    kept = {key: value for key, value in node.items() if key not in WITHOUT_EFFECT}
    if config.on_client_failure == "drop":
        kept["on_client_failure"] = "drop"
    kept |= {part: placeless(kept[part]) for part in ("data", "partition", "systems", "public")}
    return hashlib.sha256(json.dumps([kept, dict(digests)], sort_keys=True).encode()).hexdigest()[:12]


def placeless(node: Any) -> Any:
    """A part without the keys that say where its files are."""
    return {key: placeless(value) for key, value in node.items() if key not in PLACES} if isinstance(node, Mapping) else node
