"""The configurations of run folders, read as they were written and completed with what came later."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

LATER = {"evaluation": "default", "shift": "none", "systems": "default", "public": "none"}
"""Parts that older runs lack, or that have gained keys since, and what is shipped of each."""
CONF = Path(__file__).resolve().parents[1] / "conf"


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML as OmegaConf reads it (``1e-3`` is a number, no text is a date), by the parser in C where there is one."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in Loader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def configuration(path: Path) -> dict[str, Any]:
    """The configuration in a file; what it interpolates is resolved."""
    text = path.read_text(encoding="utf-8")
    if "${" in text:
        return OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    return yaml.load(text, Loader)


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the keys that came after the run was made, at the values with which they are shipped: those change nothing."""
    config = {
        "validation": 0.0,
        "distill": None,
        "distill_every": None,
        "distill_with": {},
        "diagnose_every": None,
        "tensorboard": False,
        **config,
    }
    for part, name in LATER.items():
        shipped, given = _shipped(part, name), config.get(part, {})
        if given.get("_target_", shipped.get("_target_")) == shipped.get("_target_"):
            config[part] = {**shipped, **given}
    return config


@cache
def _shipped(part: str, name: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(CONF / part / f"{name}.yaml"))
