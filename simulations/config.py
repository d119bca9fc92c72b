"""Configurations composed from conf/ and the user's folder, tuned values, absolute paths."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedkd.config.build import unresolved
from fedkd.config.schema import Composed, Distillation
from fedkd.errors import ConfigError, is_plain_name, one_line, require
from fedkd.files import with_home
from simulations.overrides import CONF, PATH_KEYS, check_optional, explain, with_search_path
from simulations.user_modules import allowed_targets, remember

TUNED_COLUMNS = ("option", "key", "value", "selected")
"""Columns that a file of tuned values must have."""

LOCATIONS = ("root", "path", "cache", "trace")
"""Keys of a part that tell where files are."""

LABEL = "_label_"
"""The key of a part that gives its printed name in reports. The part does not receive it, and no hash contains it."""

LABELED = ("strategy", "distiller")
"""The parts that have one; it is recorded in ``choices`` as ``strategy_label`` or ``distiller_label``."""

ConfigStore.instance().store(name="schema", node=Composed)
ConfigStore.instance().store(name="distillation", node=Distillation)


def compose(overrides: Sequence[str], name: str = "config") -> DictConfig:
    """The configuration that ``overrides`` describe, with the names of the chosen options in ``choices``.

    Args:
        overrides: words ``KEY=VALUE`` of the command line.
        name: the file in conf/ with the defaults: ``config`` of a federated run, ``distill`` of a distillation.

    Raises:
        ConfigError: a word is wrong; the message names the key, and the nearest one that exists.
    """
    config = compose_with_hydra(overrides, name)
    choices, words = dict(config.hydra.runtime.choices), task_words(config.hydra)
    with open_dict(config):
        del config["hydra"]
    return with_choices(config, choices, words)


def task_words(hydra_config: Any) -> list[str]:
    """The words of the command line in Hydra's own node, as they were given: an interpolation in them stays one."""
    return [str(word) for word in OmegaConf.to_container(hydra_config.overrides.task, resolve=False)]  # type: ignore[union-attr]


def compose_with_hydra(overrides: Sequence[str], name: str = "config") -> DictConfig:
    """The same with Hydra's own node, and with the sweep that an experiment describes.

    Raises:
        ConfigError: see :func:`compose`.
    """
    words = with_search_path(overrides)
    ready = GlobalHydra.instance().is_initialized()  # within the command
    try:
        with nullcontext() if ready else hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(name, words, return_hydra_config=True)
    except ConfigError:
        raise
    except Exception as error:  # Hydra raises errors of many kinds where a word does not fit the configuration
        raise ConfigError(explain(error)) from error


def with_choices(config: DictConfig, choices: Mapping[str, str | None], overrides: Sequence[str] = ()) -> DictConfig:
    """``config`` with the names of the chosen options, and without the sweep that an experiment describes.

    Args:
        config: composed.
        choices: as Hydra's ``runtime.choices`` has them.
        overrides: the words behind them. A part whose ``_target_`` they replace is named by its class instead of the option it began as.

    Raises:
        ConfigError: ``overrides`` choose an experiment or a recipe that does not exist, or an interpolation cannot be resolved.
    """
    check_optional(choices, overrides)
    named = {key: name for key, name in sorted(choices.items()) if "hydra" not in key and isinstance(name, str)}
    for key, _, value in (word.lstrip("+").partition("=") for word in overrides):
        if key.endswith("._target_") and (part := key.removesuffix("._target_")) in (*named, "data"):
            named[part] = value.strip("'\"").rpartition(".")[2].lower()
    with open_dict(config):
        expand_home(config)
        config.choices = named | _labels(config, named, overrides)
        config.pop("reproduce", None)
        config.allow_targets = allowed_targets(config, texts(config, "allow_targets"), texts(config, "searchpath"))
        remember(config.allow_targets)
    return config


def resolved(node: DictConfig, key: str, path: str) -> Any:
    """A value of ``node``, None without it. Lists and nodes are plain Python objects.

    Raises:
        ConfigError: it holds an interpolation that cannot be resolved; ``path`` names it in the configuration.
    """
    try:
        value = node.get(key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise unresolved(error, path) from error


def texts(config: DictConfig, key: str) -> list[str]:
    """A list of texts in the configuration, empty for null.

    Raises:
        ConfigError: it is another list, or holds an interpolation that cannot be resolved.
    """
    values = resolved(config, key, key) or []
    require(all(isinstance(value, str) for value in values), key, "must be a list of texts", values)
    return values


def _labels(config: DictConfig, choices: Mapping[str, str], overrides: Sequence[str]) -> dict[str, str]:
    """The printed names of the parts :data:`LABELED`, by their names in ``choices``. The key :data:`LABEL` is taken out of each part.

    A part whose ``_target_`` the words replace does not inherit the name of the option it began as.

    Raises:
        ConfigError: a name is no text of one line.
    """
    found = {}
    for part in (part for part in LABELED if isinstance(config.get(part), DictConfig)):
        label, keys = resolved(config[part], LABEL, f"{part}.{LABEL}"), [word.lstrip("+").partition("=")[0] for word in overrides]
        config[part].pop(LABEL, None)
        if label is None or (f"{part}._target_" in keys and f"{part}.{LABEL}" not in keys):
            continue
        rule = "must be a text of one line that does not begin with one of = + - @, a formula for spreadsheets"
        require(is_plain_name(label), f"{part}.{LABEL}", rule, label)
        found[f"{part}_label"] = str(label)
    return found


def apply_tuned_params(config: DictConfig, part: str) -> dict[str, object] | None:
    """Set the values that were selected for a part (``strategy`` or ``distiller``) in the file ``tuned_params``.

    Returns:
        The contents of ``tuned.json``: the file, the SHA-256 of the trials of this part without their times, the selected rows, and
        whether the configuration had these values anyway (``shipped``). None if nothing is tuned.

    Raises:
        ConfigError: the file cannot be read, or holds no choice for it.
    """
    if config.tuned_params is None:
        return None
    config.tuned_params, name = str(Path(with_home(config.tuned_params)).absolute()), config.choices.get(part)
    try:
        rows = [{key: row[key] for key in row if key != "seconds"} for row in tuned_rows(Path(config.tuned_params), name)]
        taken = {row["key"]: row for row in rows if row["selected"] == "1"}
        chosen = {key: number_like(OmegaConf.select(config, key), float(row["value"])) for key, row in taken.items()}
    except (OSError, ValueError) as error:
        rule = f"must be a file that fedkd tune has written, with the columns {', '.join(TUNED_COLUMNS)}"
        raise ConfigError(f"tuned_params {rule}, got {config.tuned_params!r}: {one_line(error)}") from None
    command = {"strategy": "fedkd tune", "distiller": "fedkd tune --distiller"}[part]
    rule = f"must hold a choice for {part} {name} ({command} {part}={name})"
    require(bool(chosen), "tuned_params", rule, config.tuned_params)
    shipped = all(OmegaConf.select(config, key) == value for key, value in chosen.items())
    for key, value in chosen.items():
        OmegaConf.update(config, key, value)
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return {"file": config.tuned_params, "sha256": digest, "selected": list(taken.values()), "tried": len(rows), "shipped": shipped}


def number_like(current: object, value: float) -> float:
    """A tuned value for a key that holds ``current``. Whole numbers are integers, as for numbers of steps, except where a float stands."""
    return int(value) if value.is_integer() and not isinstance(current, float) else value


def tuned_rows(table: Path, name: str) -> list[dict[str, str]]:
    """The rows of what a table of tuning holds for a strategy or a distiller."""
    with open(table, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
        rows = csv.DictReader(file, skipinitialspace=True)
        columns = rows.fieldnames or ()
        if not set(TUNED_COLUMNS) <= set(columns):
            raise ValueError(f"it has the columns {', '.join(columns) or 'none'}")
        return [row for row in rows if row["option"] == name]


def expand_home(node: DictConfig) -> None:
    """Write the home folder for ``~`` at the beginning of every path in ``node``: the values of :data:`PATH_KEYS`, at any depth."""
    for key in map(str, node):
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig):
            expand_home(value)
        elif key in PATH_KEYS and isinstance(value, str):
            node[key] = with_home(value)


def make_absolute(node: DictConfig) -> None:
    """Make every path in ``node`` absolute."""
    for key, value in node.items():
        if isinstance(value, DictConfig):
            make_absolute(value)
        elif key in LOCATIONS and isinstance(value, str):
            node[key] = str(Path(with_home(value)).absolute())
