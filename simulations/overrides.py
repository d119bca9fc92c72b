"""The words of a command line that Hydra does not know: the user's own folder, and the nearest valid name for a wrong one.

``searchpath=./mylab`` (or a file ``fedkd.yaml`` in the current folder that says ``searchpath: mylab``) names a folder of the user.
Options of ``mylab/conf/<group>/<option>.yaml`` join those of fedkd, and the modules beside ``conf`` can be imported.
"""

import difflib
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd.errors import ConfigError, nearest, one_line
from fedkd.files import with_home

CONF = Path(__file__).resolve().parents[1] / "conf"
KEY = "searchpath"
FILE = "fedkd.yaml"
PATH_KEYS = ("output", "root", "path", "cache", "trace", "teacher_run", "student_init", "tuned_params")
"""Last parts of keys whose values are paths."""
RUN_CONFIG_KEYS = {
    "num-server-rounds": "rounds", "strategy": "strategy", "data": "data", "data-root": "data.root", "partition": "partition",
    "model": "model", "num-clients": "num_clients", "clients-per-round": "clients_per_round", "local-steps": "local_steps",
    "local-epochs": "local_epochs", "batch-size": "batch_size", "learning-rate": "optimizer.lr", "engine": "engine", "device": "device",
    "seed": "seed", "timeout": "timeout", "output": "output",
}  # fmt: skip
"""The keys of a run configuration of Flower beside ``overrides``, and the keys of a run that they set."""
OPTIONAL_GROUPS = ("experiment", "recipe")
"""Groups that a configuration may go without. Hydra ignores an option of them that does not exist."""
PLUGINS = {"hydra/launcher": "launchers", "hydra/sweeper": "optuna"}
"""Groups of Hydra whose options come with other packages, and the extra of fedkd that installs some."""


def search_path(words: Sequence[str]) -> list[Path]:
    """The user's folders that the last ``searchpath=`` of ``words`` names, or else ``fedkd.yaml`` in the current folder.

    Raises:
        ConfigError: a folder does not exist, or a file of it has the place of one of fedkd's.
    """
    given = [word.partition("=")[2] for word in words if word.partition("=")[0] == KEY]
    folders = _names(given[-1]) if given else _from_file(Path(FILE))
    found = [Path(with_home(folder)).absolute() for folder in folders]
    for folder in found:
        _check(folder)
    return found


def with_search_path(words: Sequence[str]) -> list[str]:
    """``words`` for Hydra: the user's folders stand in the key ``searchpath`` as absolute paths, and in Hydra's own search path.

    The current folder and the user's are appended to ``sys.path``, after everything that is installed.

    Raises:
        ConfigError: see :func:`search_path`.
    """
    folders = search_path(words)
    extend_sys_path([Path.cwd(), *folders])
    rest = [with_quoted_path(word) for word in words if word.partition("=")[0] != KEY]
    if not folders:
        return rest
    if any(word.lstrip("+").startswith("hydra.searchpath=") for word in words):
        raise ConfigError(f"hydra.searchpath must not be given beside {KEY}, got both; give all folders in {KEY}=[a,b]")
    confs = [f"file://{folder / 'conf'}" for folder in folders if (folder / "conf").is_dir()]
    return [*rest, f"{KEY}={quoted_list(map(str, folders))}", *([f"hydra.searchpath={quoted_list(confs)}"] if confs else [])]


def with_quoted_path(word: str) -> str:
    """A word for Hydra in which a path means itself, whatever characters it holds.

    Hydra's grammar gives a meaning to brackets, ``=``, ``,``, quotes and spaces at the ends, and rejects most letters outside ASCII. The
    value of a key of :data:`PATH_KEYS` is put into quotes unless Hydra reads the same text, or a list, or several values to sweep.
    A ``~`` at its beginning becomes the home folder.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override, QuotedString
    from hydra.errors import HydraException

    key, sign, text = word.partition("=")
    if not sign or text == "" or key.lstrip("+").rpartition(".")[2] not in (*PATH_KEYS, KEY) or (key == KEY and text.startswith("[")):
        return word
    try:
        read: Override | None = OverridesParser.create().parse_override(word)
    except HydraException:
        read = None
    if read is not None and (read.is_sweep_override() or isinstance(read._value, QuotedString | list | dict) or read.value() is None):
        return word  # a number or a truth value is a text here: output=1e3 is the folder 1e3
    home = with_home(text)
    return word if read is not None and read.value() == home else f"{key}={quoted(home)}"


def run_config_words(run_config: Mapping[str, object]) -> list[str]:
    """The words of a command line that a run configuration of Flower stands for.

    Args:
        run_config: the keys of :data:`RUN_CONFIG_KEYS`, where an empty text leaves the value of the configuration; and ``overrides``, words
            of a command line, which win.
    """
    words = shlex.split(str(run_config.get("overrides", "")))
    given = {word.lstrip("+~").partition("=")[0] for word in words}
    values = {key: run_config.get(name, "") for name, key in RUN_CONFIG_KEYS.items() if key not in given}
    if values.get("local_epochs", "") != "" and values.get("local_steps", "") == "":
        values["local_steps"] = "null"  # one of the two is set, see the schema
    return [*(f"{key}={value}" for key, value in values.items() if value != ""), *words]


def extend_sys_path(folders: Iterable[str | Path]) -> None:
    """Make modules in ``folders`` importable. They come last, so that no folder can shadow an installed package."""
    for folder in map(str, folders):
        if folder not in sys.path:
            sys.path.append(folder)


def config_folders(words: Sequence[str] = ()) -> list[Path]:
    """Folders of groups: fedkd's ``conf``, then the user's."""
    return [CONF, *(folder / "conf" for folder in search_path(words))]


def options(group: str, words: Sequence[str] = ()) -> dict[str, Path]:
    """The yaml files of a group by the name of the option, fedkd's first."""
    return {path.stem: path for folder in config_folders(words) for path in sorted((folder / group).glob("*.yaml"))}


def groups(words: Sequence[str] = ()) -> list[str]:
    """The names of all groups."""
    return sorted(
        {path.name for folder in config_folders(words) if folder.is_dir() for path in folder.iterdir() if any(path.glob("*.yaml"))}
    )


def check_optional(choices: Mapping[str, str | None], words: Sequence[str] = ()) -> None:
    """Refuse an option of :data:`OPTIONAL_GROUPS` that does not exist.

    Raises:
        ConfigError: naming the nearest option.
    """
    for group in OPTIONAL_GROUPS:
        name = choices.get(group)
        if name is not None and name not in (known := options(group, words)):
            raise ConfigError(unknown_option(group, name, known))


def explain(error: Exception) -> str:
    """An error of Hydra or OmegaConf in one line: the key, what is wrong, and the nearest valid name."""
    cause = error.__cause__ or error
    missing, known = getattr(error, "missing_cfg_file", None), getattr(error, "options", None)
    if isinstance(missing, str) and known is not None:
        group, _, name = missing.rpartition("/")
        return unknown_option(group, name, known)
    word, key = getattr(error, "override", None), getattr(cause, "full_key", None)
    if type(error).__name__ == "OverrideParseException" and word is not None:
        key, sign, value = str(word).partition("=")
        remedy = f"; a text with such characters is quoted twice: {key}='\"{value}\"'" if sign and value else ""
        return f"a word must be KEY=VALUE by Hydra's grammar, got {word!r}: {str(error).splitlines()[0]}{remedy}"
    node = getattr(cause, "parent_node", None)
    if type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError") and key and node is not None:
        return f"{key} must be a key of the configuration{_value(error, key)}{_nearest_key(key, node)}"
    if type(cause).__name__ == "ValidationError" and key and str(error).startswith("Error merging override"):
        line, value = str(cause).splitlines()[0], str(error).splitlines()[0].partition("=")[2]
        kind = line.rpartition("could not be converted to ")[2] if "could not be converted to" in line else ""
        if kind:
            return f"{key} must be of the type {kind}, got {value!r}"
        return f"{key} must not be null" if "is not Optional" in line else f"{key} must be valid, got {value!r}: {line}"
    if str(error).startswith("Ambiguous value for argument "):
        name, _, value = str(error).splitlines()[0].split("'")[1].partition("=")
        remedy = f"'fedkd sweep' runs all of them, {name}=[{value}] is a list, {name}='\"{value}\"' is one text"
        return f"{name} must be one value, got {value!r}; {remedy}"
    if "No match in the defaults list" in str(error):
        group = str(error).split("'")[1]
        return f"{group} must be a group that this configuration chooses from, which it is not{nearest(group, groups())}"
    lines = [line.strip() for part in dict.fromkeys((error, cause)) for line in str(part).splitlines()]
    noise = ("full_key", "object_type", "reference_type", "To append", "Config search path", "provider=", "See https")
    return "; ".join(line for line in lines if line and not line.startswith(noise))


def unknown_option(group: str, name: str, known: Iterable[str]) -> str:
    """The message for an option that a group does not have, with the nearest one or all."""
    known = list(known)
    hint = nearest(name, known) or f"; choose one of {', '.join(known)}"
    if group in PLUGINS:
        return f"{group} must be an option of an installed plugin, got {name!r}{hint} (pip install 'fedkd[{PLUGINS[group]}]' brings more)"
    return f"{group} must be an option of conf/{group}, got {name!r}{hint} (for options of your own: searchpath=FOLDER)"


def _value(error: Exception, key: str) -> str:
    """``, got 3``, from the advice of Hydra that contains the value."""
    _, found, rest = str(error).partition(f"+{key}=")
    return f", got {rest.splitlines()[0]!r}" if found and rest else ""


def _nearest_key(key: str, node: Any) -> str:
    """Keys of the same last part anywhere in the configuration or in other options of the group, or else the nearest one."""
    leaves = list(_keys(node._get_root()))
    group, _, last = key.rpartition(".")
    same = [leaf for leaf in leaves if leaf.rpartition(".")[2] == last]
    if same and not group:
        return f"; did you mean {' or '.join(map(repr, same[:3]))}?"
    names = [str(name) for name in node if not str(name).startswith("_") or last.startswith("_")]  # _target_ resembles no parameter
    elsewhere = _parameters_of_options(group)
    if last in elsewhere:
        return f"; it is a key of {group}={', '.join(elsewhere[last])}"
    dotted = f"{group}." if group else ""
    if hint := nearest(last, names):  # the last parts are compared: equal first parts resemble each other always
        return hint.replace(" '", f" '{dotted}")
    if found := difflib.get_close_matches(last, elsewhere, n=1):
        return f"; did you mean {dotted + found[0]!r}, a key of {group}={', '.join(elsewhere[found[0]])}?"
    if not group:
        return nearest(key, leaves)
    return f"; {group} has {'the keys ' + ', '.join(names) if names else 'no keys'} here" if len(names) <= 12 else ""


def _parameters_of_options(group: str) -> dict[str, list[str]]:
    """The parameters of a group's options, each with the options that have it; empty where ``group`` is no group."""
    import yaml

    found: dict[str, list[str]] = {}
    for option, path in options(group).items() if group and (CONF / group).is_dir() else ():
        for name in yaml.safe_load(path.read_text(encoding="utf-8")) or {}:
            if not name.startswith("_") and name != "defaults":
                found.setdefault(name, []).append(option)
    return found


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of all leaves, Hydra's own left out."""
    for key in node:
        if not prefix and key == "hydra":
            continue
        value = node._get_node(key)
        name = f"{prefix}{key}"
        yield name
        if hasattr(value, "keys") and not value._is_none() and not value._is_interpolation() and not value._is_missing():
            yield from _keys(value, f"{name}.")


def _names(text: str) -> list[str]:
    """``[a,b]`` or ``a`` as names."""
    text = text.strip()
    inner = re.findall(r"""'(?:\\.|[^'\\])*'|"[^"]*"|[^,]+""", text[1:-1]) if text.startswith("[") and text.endswith("]") else [text]
    names = (one.strip() for one in inner)
    return [re.sub(r"\\(['\\])", r"\1", name.strip("'\"")) for name in names if name.strip("'\"") not in ("", "null")]


def quoted(value: str) -> str:
    """A text in quotes, as Hydra's grammar takes any text."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", value)
    escaped = re.sub(r"(\\+)$", lambda found: found[1] * 2, escaped)
    return f"'{escaped}'"


def quoted_list(values: Iterable[str]) -> str:
    """A list as Hydra's grammar takes it, each value quoted."""
    return f"[{','.join(map(quoted, values))}]"


def _from_file(path: Path) -> list[str]:
    """The folders that a ``fedkd.yaml`` names; they stand beside the file."""
    if not path.is_file():
        return []
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{FILE} must be a YAML file, got {one_line(error)}") from error
    if not isinstance(content, dict) or (wrong := [str(key) for key in content if key != KEY]):
        hint = nearest(wrong[0], [KEY]) if isinstance(content, dict) else ""
        raise ConfigError(f"{FILE} must hold the key {KEY} alone, got {content!r}{hint}")
    value = content.get(KEY) or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{KEY} in {FILE} must be a folder or a list of folders, got {value!r}")
    return [str(path.parent / name) for name in names]


def _check(folder: Path) -> None:
    """Refuse a folder that is not there, unknown groups, and options that fedkd has already."""
    if not folder.is_dir():
        raise ConfigError(f"{KEY} must be an existing folder, got {str(folder)!r}; 'fedkd new strategy {folder.name}/mine' makes one")
    for path in sorted((folder / "conf").glob("*/*.yaml")):
        group = path.parent.name
        if not (CONF / group).is_dir():
            known = [one.name for one in CONF.iterdir() if one.is_dir()]
            raise ConfigError(f"{KEY} must hold groups of fedkd under conf, got conf/{group} in {str(folder)!r}{nearest(group, known)}")
        if (CONF / group / path.name).exists():
            raise ConfigError(
                f"{KEY} must hold options of other names than fedkd's, got conf/{group}/{path.name} in {str(folder)!r}; rename the file"
            )
