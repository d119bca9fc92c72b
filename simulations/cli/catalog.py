"""The options of every group, from the yaml files of ``conf`` and the user's folders: no object is built and no module imported.

``describe`` gives rows of plain values; ``render`` writes them as text or Markdown. Values of an option are those that Hydra composes
from its ``defaults``, for the forms that ``conf`` uses.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from fedkd.errors import ConfigError, one_line
from simulations.cli.signatures import Signature, arguments, defines_main, first_line, signature
from simulations.overrides import CONF, groups, nearest, options, search_path, unknown_option

GROUPS = {
    "aggregator": "how the clients' models become one: the mean, or a rule that bounds the influence of single clients",
    "augmentation": "random changes of the training images of a distillation",
    "data": "the data set",
    "distiller": "the distillation method",
    "engine": "where clients run",
    "drift": "changes of the clients' data during a run",
    "evaluation": "when, and on which examples, models are evaluated",
    "experiment": "an experiment: settings, strategies and seeds",
    "generator": "the generator of a strategy",
    "image_source": "where the images of a distillation come from",
    "model": "the network",
    "optimizer": "the optimizer of local training",
    "partition": "which client holds which examples",
    "protocol": "settings that every strategy has, as in FedGen's public code or paper",
    "public_data": "public (proxy) data, shared by the server and the clients",
    "recipe": "the settings of a published distillation",
    "report": "options of a report: fedkd report FOLDER report=OPTION",
    "server_optimizer": "the server's step along the change of the model in a round",
    "shift": "feature shift and label noise of clients",
    "strategy": "the federated algorithm",
    "systems": "client sampling and system heterogeneity",
    "tracker": "trackers of experiments that follow a run, several as 'tracker=[mlflow,tensorboard]'",
}
"""What each group chooses."""

ROOTS = {"run": ("config", "Run"), "distill": ("distill", "Distillation")}
"""Commands whose keys can be described: the yaml file of the keys, and the class whose docstring explains them."""

INTERNAL_BENCHMARKS = ("flower_runtime", "reference_process")
"""Processes that benchmarks start for themselves."""

Row = dict[str, Any]


def describe(group: str | None = None, option: str | None = None, words: Sequence[str] = ()) -> list[Row]:
    """What can be chosen.

    Args:
        group: of ``conf``, or ``run`` or ``distill`` for the keys of these commands; None for all groups.
        option: of the group; None for all.
        words: overrides; only ``searchpath`` counts.

    Returns:
        Rows ``group, options, default, meaning``; with a group ``option, default, meaning, target``; with an option, or for ``run`` and
        ``distill``, ``key, value, type, meaning``.

    Raises:
        ConfigError: there is no such group or option; the message names the nearest.
    """
    if group is None:
        chosen = defaults_of("config") | {key: name for key, name in defaults_of("distill").items() if key not in defaults_of("config")}
        return [
            {"group": one, "options": len(options(one, words)), "default": chosen.get(one), "meaning": GROUPS.get(one, "")}
            for one in groups(words)
        ]
    if group in ROOTS and option is None:
        return _keys_of_root(group)
    known = groups(words)
    if group not in known:
        raise ConfigError(f"group must be one of {', '.join(known)}, got {group!r}{nearest(group, known)}")
    if option is not None:
        return _parameters(group, option, words)
    default = (defaults_of("config") | defaults_of("distill") | defaults_of("config")).get(group)
    return [
        {"option": name, "default": name == default, "meaning": sentence(path), "target": load(path)[0].get("_target_", "")}
        for name, path in options(group, words).items()
    ]


def file_of(group: str, option: str, words: Sequence[str] = ()) -> Path:
    """The yaml file of an option.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    known = options(group, words)
    if option not in known:
        raise ConfigError(unknown_option(group, option, known))
    return known[option]


def sentence(path: Path) -> str:
    """The comment in the first line of a yaml file (in the second after ``# @package``); empty where there is none."""
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.startswith("#"):
            return ""
        if not line.startswith("# @package"):
            return line.lstrip("# ")
    return ""


def values(group: str, option: str, words: Sequence[str] = (), overriding: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The nested values of an option, its ``defaults`` included; ``overriding`` are those that an including option has chosen."""
    path = file_of(group, option, words)
    own, entries = load(path)
    if "_self_" not in entries:
        entries = [*entries, "_self_"]
    pairs = [next(iter(entry.items())) for entry in entries if isinstance(entry, Mapping)]
    chosen = {key.removeprefix("override ").strip(): name for key, name in pairs if key.startswith("override ")} | dict(overriding or {})
    merged: dict[str, Any] = {}
    for entry in entries:
        if entry == "_self_":
            _merge(merged, own)
            continue
        key, name = next(iter(entry.items())) if isinstance(entry, Mapping) else (f"/{group}", entry)
        name = chosen.get(key, name)
        if name is None or key.startswith(("override ", "optional ")):
            continue
        if not isinstance(entry, Mapping):
            name, _, package = name.partition("@")
            key = f"{key}@{package or '_here_'}"
        other, _, package = key.removeprefix("/").partition("@")
        inner = values(other if key.startswith("/") else f"{group}/{other}", name, words, chosen)
        _merge(merged, inner if package == "_here_" else _nested(package or other, inner))
    return merged


def defaults_of(root: str) -> dict[str, str]:
    """The option that ``conf/<root>.yaml`` chooses in each group, by the key in the configuration (``teacher`` for ``model@teacher``)."""
    entries = [one for one in load(CONF / f"{root}.yaml")[1] if isinstance(one, Mapping)]
    pairs = [next(iter(one.items())) for one in entries]
    return {key.rpartition("@")[2]: name for key, name in pairs if not key.startswith(("override ", "optional "))}


def overridden(experiment: str, words: Sequence[str] = ()) -> dict[str, str]:
    """The options that an experiment chooses, those of its parents included."""
    found: dict[str, str] = {}
    for entry in load(file_of("experiment", experiment, words))[1]:
        if isinstance(entry, Mapping):
            key, name = next(iter(entry.items()))
            found[key.removeprefix("override ").strip().removeprefix("/").rpartition("@")[2]] = name
        elif entry != "_self_":
            found |= overridden(entry, words)
    return found


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested values under their dotted keys; ``_target_`` and the like are left out."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        elif not str(key).startswith("_"):
            yield f"{prefix}{key}", value


@lru_cache(maxsize=512)
def _text(path: Path, changed: float) -> tuple[dict[str, Any], list[Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load(path.read_text(encoding="utf-8-sig"), loader) or {}
    entries = content.pop("defaults", [])
    return content, entries


def load(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """A yaml file: its content, and the list ``defaults``.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        content, entries = _text(path, path.stat().st_mtime)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        raise ConfigError(f"{path} must be a YAML file of keys, got {one_line(error)}") from error
    return content, list(entries)


def comments(path: Path) -> dict[str, str]:
    """The comments behind values in a yaml file, by dotted key."""
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        match = re.match(r"(\s*)([\w-]+):(?:\s|$)(.*)", line)
        if not match:
            continue
        depth = len(match[1])
        parents = [*[one for one in parents if one[0] < depth], (depth, match[2])]
        text = re.search(r"\s#\s+(.*)$", match[3])
        if text:
            found[".".join(name for _, name in parents)] = text[1]
    return found


def source_of(group: str, option: str, words: Sequence[str] = ()) -> Signature | None:
    """The class or function that an option builds; None where its source is not fedkd's or the user's."""
    target = values(group, option, words).get("_target_")
    return None if target is None else signature(target, [CONF.parent, *search_path(words), Path.cwd()])


def _parameters(group: str, option: str, words: Sequence[str]) -> list[Row]:
    path = file_of(group, option, words)
    roots = [CONF.parent, *search_path(words), Path.cwd()]
    return list(_rows(values(group, option, words), comments(path), roots))


def _rows(node: Mapping[str, Any], said: Mapping[str, str], roots: Sequence[Path], prefix: str = "") -> Iterator[Row]:
    """A row for each leaf; the class that a part names explains its keys, or else the comment in the yaml."""
    target = node.get("_target_")
    found = None if target is None else signature(target, roots)
    known = {} if found is None else found.parameters
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _rows(value, said, roots, f"{prefix}{key}.")
        elif not key.startswith("_"):
            parameter = known.get(key)
            meaning = (parameter.meaning if parameter else "") or said.get(f"{prefix}{key}", "")
            yield {"key": f"{prefix}{key}", "value": value, "type": parameter.annotation if parameter else "", "meaning": meaning}


def _keys_of_root(command: str) -> list[Row]:
    name, owner = ROOTS[command]
    path = CONF / f"{name}.yaml"
    schema = signature(f"fedkd.config.schema.{owner}", [CONF.parent])
    meanings = {} if schema is None else arguments(schema.docstring)
    said = comments(path)
    known = {} if schema is None else schema.parameters
    return [
        {
            "key": key,
            "value": value,
            "type": known[key].annotation if key in known else "",
            "meaning": meanings.get(key, "") or said.get(key, ""),
        }
        for key, value in load(path)[0].items()
        if key != "hydra"
    ]


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Merge nested values; lists are replaced."""
    for key, value in other.items():
        if isinstance(value, Mapping):
            inner = into.setdefault(key, {})
            if not isinstance(inner, dict):
                inner = into[key] = {}
            _merge(inner, value)
        else:
            into[key] = value


def _nested(package: str, inner: dict[str, Any]) -> dict[str, Any]:
    for name in reversed(package.split(".")):
        inner = {name: inner}
    return inner


def all_groups(words: Sequence[str] = ()) -> Iterator[tuple[str, list[Row]]]:
    """Every group with the rows of its options."""
    for group in groups(words):
        yield group, describe(group, None, words)


def benchmarks() -> dict[str, str]:
    """The benchmarks, modules of ``simulations.benchmarks`` that are commands, with the first line of each docstring."""
    paths = [path for path in sorted((CONF.parent / "simulations" / "benchmarks").glob("*.py")) if path.stem not in INTERNAL_BENCHMARKS]
    return {path.stem: first_line(path) for path in paths if defines_main(path)}
