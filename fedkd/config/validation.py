"""Checks of a configuration: its own keys, and the values of each part against the signature that its ``_target_`` names.

All checks run before any work. Every error is one line: key, rule, value, and remedy.
"""

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from fedkd.config.build import OWN_PACKAGES, to_dict
from fedkd.config.schema import Distillation, Run
from fedkd.config.targets import check_targets, resolve_target
from fedkd.errors import ConfigError, is_plain_name, nearest, require

RUN_PARTS = (
    "data", "partition", "shift", "drift", "systems", "public_data", "model", "optimizer", "strategy", "aggregator", "server_optimizer",
    "engine",
)  # fmt: skip
"""Keys of a federated run whose value is an object with a ``_target_``."""

DISTILLATION_PARTS = ("data", "augmentation", "teacher", "student", "distiller", "image_source", "optimizer")
"""Keys of a distillation whose value is an object with a ``_target_``."""

POSITIVE_RUN_KEYS = (
    "rounds", "num_clients", "clients_per_round", "batch_size", "checkpoint_every", "evaluation.every", "evaluation.batch_size",
)  # fmt: skip

POSITIVE_DISTILLATION_KEYS = ("epochs", "batch_size", "evaluate_every", "evaluation_batch_size", "checkpoint_every")

OPTIONAL_KEYS = ("searchpath", "allow_targets", "choices", "force", "accept_code", "objective", "tracker", *RUN_PARTS, *DISTILLATION_PARTS)
"""Keys whose absence has its own check, or no effect."""

OWN_KEYS = ("_target_", "_partial_")
"""Keys of a part that are Hydra's and not parameters of the part's class."""


# --------------------------------------------------------------------------------------------------- keys of a configuration
def check_run(config: DictConfig) -> None:
    """Check all keys of a federated run.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    check_values(config)
    check_keys(config, [field.name for field in fields(Run)], "a federated run")
    for key in POSITIVE_RUN_KEYS:
        value = OmegaConf.select(config, key)
        require(value is not None and value >= 1, key, "must be >= 1", value)
    population = f"must be at most num_clients ({config.num_clients})"
    require(config.clients_per_round <= config.num_clients, "clients_per_round", population, config.clients_per_round)
    sampled = config.evaluation.clients
    fits = sampled is None or 1 <= sampled <= config.num_clients
    require(fits, "evaluation.clients", f"must be in 1..num_clients ({config.num_clients}), or null for all", sampled)
    steps, epochs = config.local_steps, config.local_epochs
    require((steps is None) != (epochs is None), "local_steps", f"or local_epochs must be set, and not both (local_epochs={epochs})", steps)
    key, value = ("local_steps", steps) if epochs is None else ("local_epochs", epochs)
    require(value >= 1, key, "must be >= 1", value)
    chunk = config.clients_per_vmap
    require(chunk == "auto" or (isinstance(chunk, int) and chunk >= 1), "clients_per_vmap", "must be >= 1, or auto", chunk)
    choices = {
        "on_client_failure": ("raise", "retry", "drop"),
        "evaluation.split": ("test", "validation"),
        "evaluation.local_test": ("own_classes", "all_examples"),
    }
    for key, allowed in choices.items():
        check_choice(key, OmegaConf.select(config, key), allowed)
    has_examples = config.evaluation.split == "test" or config.validation_fraction > 0
    require(has_examples, "validation_fraction", "must be > 0 where evaluation.split=validation", config.validation_fraction)
    require(config.retries >= 0, "retries", "must be >= 0", config.retries)
    norm = config.max_update_norm
    require(norm is None or norm > 0, "max_update_norm", "must be > 0, or null for no bound", norm)
    require(config.timeout > 0, "timeout", "must be > 0 seconds", config.timeout)
    every = config.distill_every
    fits = every is None or (every >= 1 and every % config.checkpoint_every == 0)
    require(fits, "distill_every", f"must be null, or a multiple of checkpoint_every ({config.checkpoint_every})", every)
    every = config.generator_diagnostics_every
    require(every is None or every >= 1, "generator_diagnostics_every", "must be >= 1 rounds, or null for never", every)
    check_common_keys(config)
    for part in RUN_PARTS:
        if part == "drift" and not config.get(part):  # runs of earlier versions have none
            continue
        check_part(to_dict(config[part]), part, config.get("allow_targets") or [])


def check_distillation(config: DictConfig) -> None:
    """Check all keys of a distillation.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    check_values(config)
    check_keys(config, [field.name for field in fields(Distillation)], "a distillation")
    for key in POSITIVE_DISTILLATION_KEYS:
        require(config[key] >= 1, key, "must be >= 1", config[key])
    for key, least in (("num_classes", 2), ("num_train_images", 1), ("steps_per_epoch", 1), ("teacher_epochs", 1)):
        require(config[key] is None or config[key] >= least, key, f"must be >= {least}, or null", config[key])
    check_choice("teacher_kind", config.teacher_kind, ("global_model", "client_ensemble"))
    milestones = list(config.milestones)
    are_fractions = all(isinstance(fraction, float) and 0 < fraction < 1 for fraction in milestones)
    require(
        are_fractions and milestones == sorted(milestones),
        "milestones",
        "must be ascending fractions of the training, between 0 and 1",
        milestones,
    )
    require(0 <= config.lr_decay <= 1, "lr_decay", "must be in 0..1", config.lr_decay)
    require(config.layer_information_images >= 0, "layer_information_images", "must be >= 0 images", config.layer_information_images)
    check_common_keys(config)
    for part in DISTILLATION_PARTS:
        if config[part] is not None:
            check_part(to_dict(config[part]), part, config.get("allow_targets") or [])


def check_common_keys(config: DictConfig) -> None:
    """Check the keys that federated runs and distillations share.

    Raises:
        ConfigError: a value is wrong.
    """
    fraction = config.validation_fraction
    require(0 <= fraction < 1, "validation_fraction", "must be a fraction in 0..1, 1 excluded (0 holds nothing out)", fraction)
    check_choice("precision", config.precision, ("float32", "float64", "bfloat16"))
    require(re.fullmatch(r"cpu|cuda(:\d+)?", config.device) is not None, "device", "must be cpu, cuda or cuda:<number>", config.device)
    check_name(config.name)


def check_name(name: str) -> None:
    """Check the folder that groups runs. It lies in ``output``, and it is a cell of tables, where spreadsheets read ``=`` as a formula.

    Raises:
        ConfigError: the name is no relative path of plain folder names.
    """
    folders = name.split("/")
    plain = all(folder.strip() == folder != "" and not folder.startswith((".", "~")) for folder in folders)
    rule = "must be a folder name inside output, without .. and line breaks, that does not begin with one of = + - @"
    require(plain and is_plain_name(name) and "\\" not in name, "name", rule, name)


def check_values(config: DictConfig) -> None:
    """Check that all interpolations can be resolved and that all numbers are finite.

    Raises:
        ConfigError: naming the key.
    """
    for key, value in leaves(to_dict(config)):
        finite = not isinstance(value, float) or math.isfinite(value)
        require(finite, key, "must be a finite number", value)


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """``(key, value)`` of all values in nested dictionaries and lists, with dotted keys."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        yield key, node
        return
    for name, value in items:
        yield from leaves(value, f"{key}.{name}" if key else str(name))


def check_keys(config: DictConfig, known: Iterable[str], owner: str) -> None:
    """Check that all keys of ``config`` are ``known``, and that none is missing but :data:`OPTIONAL_KEYS`.

    Raises:
        ConfigError: a key is not known, with the nearest one that is; or a key is missing.
    """
    known = list(known)
    missing = [key for key in known if key not in config and key not in OPTIONAL_KEYS]
    require(not missing, missing[0] if missing else "", "must be set", "no value")
    for key in map(str, config):
        if key not in known:
            remedy = nearest(key, known) or f"; its keys are {', '.join(known)}"
            raise ConfigError(f"{key} must be a key of {owner}, got {config[key]!r}{remedy}")


def check_choice(key: str, value: Any, allowed: Iterable[str]) -> None:
    """Check that ``value`` is one of ``allowed``.

    Raises:
        ConfigError: it is not; the message names all allowed values.
    """
    allowed = list(allowed)
    require(value in allowed, key, f"must be one of {', '.join(allowed)}", value)


# ------------------------------------------------------------------------------------------------------------------- parts
def check_part(node: Mapping[str, Any], key: str, allowed: Sequence[str] = ()) -> None:
    """Compare a part's values with the signature that its ``_target_`` names, and those of the parts inside it likewise.

    Args:
        node: the part: ``_target_`` and parameters.
        key: path of the part, for messages.
        allowed: modules that the user names, see ``allow_targets``.

    Raises:
        ConfigError: ``_target_`` is not allowed or cannot be imported, a parameter is unknown or missing, or a value has the wrong type.
    """
    require("_target_" in node, f"{key}._target_", "must name a class or function", node)
    target = resolve_target(node["_target_"], f"{key}._target_", allowed)
    check_targets(dict(node), key, allowed)
    check_arguments(target, node, key, allowed)
    partial, parameters = bool(node.get("_partial_")), inspect.signature(target).parameters.values()
    ours = str(node["_target_"]).partition(".")[0] in OWN_PACKAGES
    # A partial part gets the rest when it is used: in fedkd's own packages by position, so that keywords are the configuration's.
    own = [p.name for p in parameters if p.default is p.empty and (not partial or (ours and p.kind == p.KEYWORD_ONLY))]
    missing = sorted({name for name in own if name not in node} & set(parameter_names(target)))
    require(not missing, key, f"must set all parameters of {target.__name__} that have no default; missing are", missing)
    if partial and inspect.isclass(target) and issubclass(target, torch.optim.Optimizer):
        check_optimizer(target, {name: value for name, value in node.items() if name not in OWN_KEYS}, key)


def parameter_names(target: Any) -> list[str]:
    """The names of a signature's parameters, ``*args`` and ``**kwargs`` left out, sorted."""
    parameters = inspect.signature(target).parameters.values()
    return sorted(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))


def check_arguments(target: Any, node: Mapping[str, Any], key: str, allowed: Sequence[str]) -> None:
    """Check names and types of a part's values, see :func:`check_part`.

    Raises:
        ConfigError: a parameter is unknown, or a value has the wrong type.
    """
    parameters, known = inspect.signature(target).parameters, parameter_names(target)
    any_name = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    for name, value in node.items():
        if name in OWN_KEYS:
            require(name == "_target_" or isinstance(value, bool), f"{key}.{name}", "must be true or false", value)
            continue
        if name not in known and (not any_name or name.startswith("_")):
            remedy = nearest(name, known) or f"; its parameters are {', '.join(known) or 'none'}"
            raise ConfigError(f"{key}.{name} must be a parameter of {target.__name__}, got {value!r}{remedy}")
        if isinstance(value, Mapping) and "_target_" in value:
            check_part(value, f"{key}.{name}", allowed)
        elif isinstance(value, Mapping) and value and all(isinstance(inner, Mapping) for inner in value.values()):
            for inner_name, inner in value.items():
                check_part(inner, f"{key}.{name}.{inner_name}", allowed)
        elif name in parameters:
            check_type(parameters[name].annotation, value, f"{key}.{name}")


def check_optimizer(target: type[torch.optim.Optimizer], arguments: Mapping[str, Any], key: str) -> None:
    """Construct the optimizer once, so that wrong arguments are refused now and not at a client's first step.

    Raises:
        ConfigError: the optimizer refuses its arguments.
    """
    require("lr" in arguments, f"{key}.lr", "must be set", "no value")
    try:
        target([torch.zeros(1, requires_grad=True)], **arguments)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ConfigError(f"{key} must have valid arguments of {target.__name__}, got {dict(arguments)}: {error}") from error


def check_type(annotation: Any, value: Any, key: str) -> None:
    """Check a value against the annotation of its parameter.

    YAML has no tuples and arrays, so a list passes for both. An integer passes for a float.

    Raises:
        ConfigError: the value has another type.
    """
    unchecked = annotation is inspect.Parameter.empty or isinstance(annotation, str)
    if unchecked or (isinstance(value, list) and "ndarray" in str(annotation)):
        return
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return
    try:
        adapter.validate_python(tuple(value) if isinstance(value, list) else value, strict=True)
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Input should be ")
        remedy = "; without quotes it is a number" if "number" in rule and isinstance(value, str) and is_number(value) else ""
        raise ConfigError(f"{key} must be {rule}, got {value!r}{remedy}") from None


def is_number(text: str) -> bool:
    """Whether a text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
