"""Checks of a configuration: its own keys, and the values of each part against the signature that its ``_target_`` names."""

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from fedkd.config.schema import Distillation, Run
from fedkd.errors import ConfigError, require

RUN_PARTS = ("data", "partition", "shift", "systems", "public_data", "model", "optimizer", "strategy", "engine")

EXTRAS = {"flwr_datasets": "flwr-datasets"}
"""Packages that parts may name and that need not be installed, and the extra that brings each."""


def check_run(config: DictConfig) -> None:
    """Everything that the run's own keys must obey, before any work.

    Raises:
        ConfigError: naming the key, the rule and the value.
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
    chunk = config.clients_per_vmap
    require(chunk == "auto" or (isinstance(chunk, int) and chunk >= 1), "clients_per_vmap", "must be >= 1, or auto", chunk)
    choices = {
        "on_client_failure": ("raise", "retry", "drop"),
        "evaluation.split": ("test", "validation"),
        "evaluation.local_test": ("own_classes", "all_examples"),
    }
    for key, allowed in choices.items():
        value = OmegaConf.select(config, key)
        require(value in allowed, key, f"must be one of {', '.join(allowed)}", value)
    require(
        0 <= config.validation_fraction < 1,
        "validation_fraction",
        "must be a share in 0..1, 1 excluded (0 holds nothing out)",
        config.validation_fraction,
    )
    held_out = config.evaluation.split == "test" or config.validation_fraction > 0
    require(held_out, "validation_fraction", "must be > 0 where evaluation.split=validation", config.validation_fraction)
    require(config.retries >= 0, "retries", "must be >= 0", config.retries)
    require(config.timeout > 0, "timeout", "must be > 0 seconds", config.timeout)
    every = config.distill_every
    fits = every is None or (every >= 1 and every % config.checkpoint_every == 0)
    require(fits, "distill_every", f"must be null, or a multiple of checkpoint_every ({config.checkpoint_every})", every)
    every = config.generator_diagnostics_every
    require(every is None or every >= 1, "generator_diagnostics_every", "must be >= 1 rounds, or null for never", every)
    check_common(config)
    for part in RUN_PARTS:
        check_types(OmegaConf.to_container(config[part], resolve=True), part)


def check_common(config: DictConfig) -> None:
    """The keys that runs and distillations have in common.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """
    precisions = ("float32", "float64", "bfloat16")
    require(config.precision in precisions, "precision", f"must be one of {', '.join(precisions)}", config.precision)
    require(re.fullmatch(r"cpu|cuda(:\d+)?", config.device) is not None, "device", "must be cpu, cuda or cuda:<number>", config.device)
    require(config.name != "" and not config.name.startswith(("/", ".")), "name", "must be a folder name", config.name)


def check_types(node: Mapping[str, Any], key: str) -> None:
    """Compare a part's values with the annotations of the signature that its ``_target_`` names, and its parts' likewise.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """
    require("_target_" in node, f"{key}._target_", "must name a class or function", node)
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        root = str(node["_target_"]).partition(".")[0]
        advice = f"; pip install 'fedkd[{EXTRAS[root]}]'" if root in EXTRAS and sys.modules.get(root) is None else ""
        raise ConfigError(f"{key}._target_ must be importable, got {node['_target_']!r}: {' '.join(str(error).split())}{advice}") from error
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


def check_optimizer(target: type[torch.optim.Optimizer], arguments: Mapping[str, Any], key: str) -> None:
    """Refuse now what the optimizer would refuse at a client's first step."""
    try:
        target([torch.zeros(1, requires_grad=True)], **arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key} must be what {target.__name__} takes, got {dict(arguments)}: {error}") from error


def check_type(hint: Any, value: Any, key: str) -> None:
    """Refuse ``value`` where it is not what ``hint`` says; lists pass for tuples and for arrays, which YAML has not, integers for floats."""
    if hint is inspect.Parameter.empty or isinstance(hint, str) or (isinstance(value, list) and "ndarray" in str(hint)):
        return
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return
    try:
        adapter.validate_python(tuple(value) if isinstance(value, list) else value, strict=True)
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise ConfigError(f"{key} must be {rule}, got {value!r}") from None


DISTILLATION_PARTS = ("data", "augmentation", "teacher", "student", "distiller", "image_source", "optimizer")


def check_distillation(config: DictConfig) -> None:
    """Everything that a distillation's own keys must obey, before any work.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """
    known = [one.name for one in fields(Distillation)]
    for key in config:
        require(key in known, str(key), f"must be a key of a distillation ({', '.join(known)})", config[key])
    for key in ("epochs", "batch_size", "evaluate_every", "evaluation_batch_size", "checkpoint_every"):
        require(config[key] >= 1, key, "must be >= 1", config[key])
    for key in ("num_classes", "num_train_images", "steps_per_epoch", "teacher_epochs"):
        require(
            config[key] is None or config[key] >= (2 if key == "num_classes" else 1),
            key,
            "must be null, or positive (num_classes: > 1)",
            config[key],
        )
    require(
        config.teacher_kind in ("global_model", "client_ensemble"),
        "teacher_kind",
        "must be global_model or client_ensemble",
        config.teacher_kind,
    )
    require(
        0 <= config.validation_fraction < 1,
        "validation_fraction",
        "must be a share in 0..1, 1 excluded (0 holds nothing out)",
        config.validation_fraction,
    )
    stones = list(config.milestones)
    ascending = stones == sorted(stones) and all(0 < one < 1 for one in stones)
    require(ascending, "milestones", "must be ascending shares of the training, between 0 and 1", stones)
    require(0 <= config.lr_decay <= 1, "lr_decay", "must be in 0..1", config.lr_decay)
    require(config.layer_information_images >= 0, "layer_information_images", "must be >= 0 images", config.layer_information_images)
    check_common(config)
    for part in DISTILLATION_PARTS:
        if config[part] is not None:
            check_types(OmegaConf.to_container(config[part], resolve=True), part)
