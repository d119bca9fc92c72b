"""Completion for bash, zsh and fish: options of groups, keys of the chosen yaml, run folders."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from fedkd.errors import ConfigError
from simulations.cli import catalog
from simulations.overrides import CONF, KEY, groups, options
from simulations.run_folder.listing import is_run

PROGRAM, VARIABLE = "fedkd", "_FEDKD_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
RUN_KEYS = ("teacher_run", "student_init")
"""Keys whose value is a run folder."""
FOLDER_KEYS = ("output", "root", "cache", KEY)
"""Last parts of keys whose value is a folder."""

BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line=${COMP_LINE:0:COMP_POINT} value strip=
    local word=${line##*[[:space:]]}
    [[ $COMP_WORDBREAKS == *=* && $word == *=* ]] && strip=${word%%=*}=
    COMPREPLY=()
    for value in $(COMP_LINE="$line" %(complete_var)s=bash_complete "$1"); do
        [[ $value == *[=./,] ]] && compopt -o nospace 2>/dev/null
        COMPREPLY+=("${value#"$strip"}")
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""
"""bash breaks words at ``=`` and replaces the part behind it alone, so the part before is taken off."""


class Bash(ShellComplete):
    """bash, with words that contain ``=``."""

    name = "bash"
    source_template = BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor's, and what of the cursor's word is typed."""
        import os

        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        return (words, "") if line[-1:].isspace() else (words[:-1], words[-1] if words else "")

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """One value a line."""
        return str(item.value)


class Zsh(ZshComplete):
    """zsh, without a space behind ``strategy=`` and ``outputs/``."""

    source_template = ZshComplete.source_template.replace(
        "        compadd -U -V unsorted -a completions\n",
        "        local -a unfinished=(${(M)completions:#*[=./,]}) whole=(${completions:#*[=./,]})\n"
        "        (( $#unfinished )) && compadd -U -S '' -V unsorted -a unfinished\n"
        "        (( $#whole )) && compadd -U -V unsorted -a whole\n",
    )


add_completion_class(Bash)
add_completion_class(Zsh)
add_completion_class(FishComplete)


def script(shell: str, command: click.Command) -> str:
    """The text that a shell evaluates to complete ``fedkd``."""
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(command, {}, PROGRAM, VARIABLE).source()


def run_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Words of a federated run."""
    return _items(words("config", _typed(ctx), incomplete))


def distill_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Words of a distillation."""
    return _items(words("distill", _typed(ctx), incomplete))


def list_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """A folder, or a filter KEY=VALUE."""
    return _items([*folders(incomplete), *(words("config", _typed(ctx), incomplete) if incomplete else [])])


def report_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """A folder of runs, or the preset of a report."""
    presets = [f"report={name}" for name in options("report")]
    return _items([*folders(incomplete), *(one for one in ["report=", *presets] if incomplete and one.startswith(incomplete))])


def run_folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """A run folder, or a parent of run folders."""
    return _items(folders(incomplete))


def group_or_option(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """A group, and behind it one of its options."""
    group = ctx.params.get("group")
    known = options(group) if group and param.name == "option" else [*groups(), *catalog.ROOTS]
    return _items(sorted(name for name in known if name.startswith(incomplete)))


def experiments(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """An experiment that describes a sweep."""
    found = options("experiment")
    return _items(name for name, path in found.items() if name.startswith(incomplete) and "reproduce" in catalog.load(path)[0])


def benchmarks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """A benchmark."""
    return _items(name for name in catalog.benchmarks() if name.startswith(incomplete))


def words(root: str, typed: Sequence[str], incomplete: str) -> list[str]:
    """What ``incomplete`` can become, as whole words.

    Args:
        root: ``config`` for federated runs, ``distill`` for distillations.
        typed: the words before.
        incomplete: what is typed of this word.
    """
    try:
        sign = incomplete[: len(incomplete) - len(incomplete.lstrip("+~"))]
        word = incomplete[len(sign) :]
        found = _values(root, typed, word) if "=" in word else _keys(root, typed, word)
    except (ConfigError, OSError):
        return []
    return [sign + one for one in found if one.startswith(word)]


def folders(incomplete: str) -> list[str]:
    """Folders that begin so: run folders as they are, others with a slash, as more may follow."""
    base, _, start = incomplete.rpartition("/")
    parent = Path(f"{base}/" if incomplete.startswith("/") or base else ".").expanduser()
    if not parent.is_dir():
        return []
    found = [path for path in sorted(parent.iterdir()) if path.is_dir() and path.name.startswith(start) and not path.name.startswith(".")]
    prefix = f"{base}/" if "/" in incomplete else ""
    return [f"{prefix}{path.name}" if is_run(path) else f"{prefix}{path.name}/" for path in found]


def _keys(root: str, typed: Sequence[str], word: str) -> list[str]:
    """Groups and keys, each with its ``=``."""
    parts = _parts(root, typed)
    part = word.partition(".")[0]
    own = catalog.load(CONF / f"{root}.yaml")[0]
    if "." in word:
        group, option = parts.get(part, (None, None))
        values = {} if group is None or option is None else catalog.values(group, option, typed)
        nested = own.get(part)
        return [f"{part}.{key}=" for key, _ in catalog.flat(values or (nested if isinstance(nested, dict) else {}))]
    return sorted([*(f"{key}=" for key in parts), *(f"{key}=" for key in own if key not in (*parts, "hydra")), f"{KEY}="])


def _values(root: str, typed: Sequence[str], word: str) -> list[str]:
    """Options of a group, behind a comma too; folders; true and false."""
    key, _, value = word.partition("=")
    parts, (before, comma) = _parts(root, typed), value.rpartition(",")[:2]
    given = f"{key}={before}{comma}"
    group = parts[key][0] if key in parts else key.partition("@")[0]
    if (known := options(group, typed)) and "." not in key:
        return [f"{given}{name}" for name in known if name not in before.split(",")]
    if key in RUN_KEYS or key.rpartition(".")[2] in FOLDER_KEYS:
        return [f"{key}={folder}" for folder in folders(value)]
    part, _, inner = key.partition(".")
    current = catalog.load(CONF / f"{root}.yaml")[0].get(key)
    if inner and part in parts and parts[part][1]:
        current = dict(catalog.flat(catalog.values(*parts[part], typed))).get(inner)
    return [f"{key}=true", f"{key}=false"] if isinstance(current, bool) else []


def _parts(root: str, typed: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """The group and the chosen option of each part of a configuration, by its key: ``{"teacher": ("model", "resnet14")}``."""
    entries = [next(iter(one.items())) for one in catalog.load(CONF / f"{root}.yaml")[1] if isinstance(one, dict)]
    found: dict[str, tuple[str, Any]] = {}
    for key, name in entries:
        if not key.startswith("override "):
            group, _, part = key.removeprefix("optional ").partition("@")
            found[part or group] = (group, name)
    chosen = [word.partition("=") for word in typed if "=" in word]
    for key, _, name in chosen:
        if key == "experiment":
            found |= {part: (found[part][0], option) for part, option in catalog.overridden(name, typed).items() if part in found}
    return found | {key: (found[key][0], name.partition(",")[0]) for key, _, name in chosen if key in found}


def _typed(ctx: click.Context) -> list[str]:
    """The words before the one under the cursor."""
    return [word for word in ctx.params.get("words") or () if isinstance(word, str)]


def _items(values: Iterable[str]) -> list[CompletionItem[str]]:
    return [CompletionItem(value) for value in dict.fromkeys(values)]
