"""Configurations of run folders whose version of fedkd lacked a key. Keys with a neutral default take it, others are named in one line.

A default is neutral if it is null, false or empty: the key then leaves everything as it was. Changes of any other kind have a new schema
version, which is refused.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from fedkd.config.schema import Distillation, Run
from fedkd.config.targets import SHIPPED, resolve_target
from fedkd.errors import RunFolderError
from simulations.overrides import CONF

REMOVED = ("tensorboard",)
"""Keys of earlier versions that changed no result."""

GROUPS = {"teacher": "model", "student": "model"}
"""The folder in conf/ of a part that has another name."""


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the faster parser, where it is installed
    """A YAML loader with OmegaConf's rules: ``1e-3`` is a number, and no text is a date."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in Loader.yaml_implicit_resolvers.items()
}

Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, with interpolations resolved."""
    text = path.read_text(encoding="utf-8-sig")  # an editor may have put a byte order mark first
    return OmegaConf.to_container(OmegaConf.create(text), resolve=True) if "${" in text else yaml.load(text, Loader)


def configuration(path: Path) -> dict[str, Any]:
    """The configuration of a run folder, with the neutral keys that came later."""
    values = read_yaml(path)
    return with_neutral_defaults(values) if isinstance(values, dict) else values


def load_stored(path: Path) -> dict[str, Any]:
    """The configuration in a run folder's ``config.yaml`` with all keys of today.

    Raises:
        RunFolderError: it lacks keys that have no neutral default.
        OSError, ValueError, YAMLError, OmegaConfBaseException: the file cannot be read.
    """
    values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    if not isinstance(values, dict) or not {"strategy", "distiller"} & set(values):
        raise ValueError("it must hold strategy or distiller")
    values = with_neutral_defaults(
        {"name": path.parents[1].name, **{str(key): value for key, value in values.items() if key not in REMOVED}}
    )
    schema = Distillation if "distiller" in values else Run
    needed = [field.name for field in fields(schema) if field.default is MISSING and field.default_factory is MISSING]
    if missing := sorted(set(needed) - set(values)):
        raise RunFolderError(f"{path} must hold the keys {', '.join(missing)}; an earlier fedkd has written it: run it again")
    for part, key, value in missing_parameters(values):
        values[part] = {**values[part], key: value}
    return values


def with_neutral_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the keys of today that it lacks, where their default is neutral, and without those of :data:`REMOVED`.

    Keys of parts are left as they are.
    """
    defaults = neutral_values(CONF / ("distill.yaml" if "distiller" in values else "config.yaml"))
    kept = {key: value for key, value in values.items() if key not in REMOVED}
    return {**{key: value for key, value in defaults.items() if key != "defaults"}, **kept}


def missing_parameters(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Part, key and neutral value of each parameter without a default that a part of fedkd's lacks."""
    for part, option in dict(values.get("choices") or {}).items():
        node, file = values.get(part), CONF / (GROUPS.get(part) or part) / f"{option}.yaml"
        is_ours = isinstance(node, Mapping) and str(node.get("_target_")).startswith(tuple(f"{package}." for package in SHIPPED))
        if not isinstance(node, Mapping) or not is_ours or not file.is_file():
            continue
        lacking = {key: value for key, value in neutral_values(file).items() if key not in node}
        parameters = inspect.signature(resolve_target(node["_target_"], f"{part}._target_", ())).parameters if lacking else {}
        for key, value in lacking.items():
            if key in parameters and parameters[key].default is inspect.Parameter.empty:
                yield part, key, value


@cache
def neutral_values(file: Path) -> dict[str, Any]:
    """The keys of a file in conf/ that are null, false or empty."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if value is None or value is False or value in ([], {})}
