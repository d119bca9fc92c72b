"""``python -m tests.pages``: rewrites the generated blocks of all pages, so that they repeat docstrings, yaml files and results.

A block stands between ``<!-- generated: <kind> <arguments> -->`` and ``<!-- end -->``. ``BLOCKS`` lists the kinds.
"""

import ast
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 140
BLOCK = re.compile(r"(<!-- generated: (?P<call>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
SECTION = re.compile(r"(Source|Args|Deviations|Raises|Returns):")
EQUATION = re.compile(r"([A-Z]\w+): (``.*)", re.DOTALL)
REPOSITORY = re.compile(r"([\w-]+/[\w-]+) @ ([0-9a-f]{7})")


# ------------------------------------------------------------------------------------------- docstrings
@dataclass(frozen=True)
class Documented:
    """The parts of a class docstring.

    Args:
        equations: Text by label, such as ``Client``.
        notes: The other paragraphs before the first section.
        sections: The items of each section, such as ``Source``.
    """

    equations: dict[str, str]
    notes: list[str]
    sections: dict[str, list[str]]

    @property
    def args(self) -> dict[str, str]:
        """Descriptions of the parameters by name."""
        return dict(item.split(": ", 1) for item in self.sections.get("Args", []))


def parse(docstring: str) -> Documented:
    """The parts of a docstring of the shape equations, notes, sections."""
    equations, notes, sections = {}, [], {}
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        head, _, body = paragraph.partition("\n")
        if SECTION.fullmatch(head):
            items = re.sub(r"\n {5,}", " ", f"\n{body}").split("\n    ")[1:]  # deeper lines continue an item
            sections[head[:-1]] = [item.strip().removeprefix("- ") for item in items]
        elif found := EQUATION.fullmatch(joined := " ".join(paragraph.split())):
            equations[found[1]] = found[2]
        else:
            notes.append(joined)
    return Documented(equations, notes, sections)


@cache
def documented(target: str) -> Documented:
    """The docstring of a class ``module.Class`` of this repository, read without importing it."""
    module, _, name = target.rpartition(".")
    tree = ast.parse(source_of(target).read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    assert found, f"{module} has no class {name}"
    return parse(ast.get_docstring(found[0], clean=False) or "")


def source_of(target: str) -> Path:
    """The file of a class ``module.Class``."""
    return ROOT / (target.rpartition(".")[0].replace(".", "/") + ".py")


# ------------------------------------------------------------------------------------------- yaml
def option_file(group: str, option: str) -> Path:
    """The yaml of an option."""
    return ROOT / "conf" / group / f"{option}.yaml"


def sentence(group: str, option: str) -> str:
    """The sentence in the first comment of an option's yaml."""
    comments = [line[2:] for line in option_file(group, option).read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    return next(line for line in comments if not line.startswith("@package"))


def composed(group: str, option: str) -> dict[str, Any]:
    """An option's values with those of its defaults list merged in, in Hydra's order."""
    own = yaml.safe_load(option_file(group, option).read_text(encoding="utf-8")) or {}
    defaults = own.pop("defaults", [])
    result: dict[str, Any] = {}
    for entry in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        if entry == "_self_":
            merge(result, own)
            continue
        key, value = (group, entry) if isinstance(entry, str) else next(iter(entry.items()))
        value, _, place = value.partition("@")
        folder, _, package = key.removeprefix("override ").partition("@")
        place = place or package.removeprefix("_here_")
        inner = composed(folder.strip("/"), value)
        for part in reversed(place.split(".") if place else []):
            inner = {part: inner}
        merge(result, inner)
    return result


def merge(result: dict[str, Any], new: dict[str, Any]) -> None:
    """Write ``new`` into ``result``, mappings key by key."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            merge(result[key], value)
        else:
            result[key] = value


def parent(group: str, option: str) -> str | None:
    """The option of the same group that an option starts from."""
    defaults = (yaml.safe_load(option_file(group, option).read_text(encoding="utf-8")) or {}).get("defaults", [])
    return next((entry for entry in defaults if isinstance(entry, str) and entry != "_self_" and "@" not in entry), None)


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def shown(value: Any) -> str:
    """A value as a table has it: a component is its class with its parameters."""
    if not isinstance(value, dict):
        return f"`{flow(value)}`"
    inner = ", ".join(
        f"{key} {shown(one) if isinstance(one, dict) else flow(one)}" for key, one in value.items() if not key.startswith("_")
    )
    name = str(value.get("_target_", "")).rpartition(".")[2]
    return f"`{name}` ({inner})" if name and inner else f"`{name}`" if name else inner


# ------------------------------------------------------------------------------------------- Markdown
def plain(text: str) -> str:
    """reStructuredText of a docstring as Markdown."""
    text = re.sub(r":\w+:`([^`]*)`", r"`\1`", text.replace("``", "`"))
    pieces = text.split("`")
    pieces[::2] = [piece.replace("*", r"\*") for piece in pieces[::2]]
    return "`".join(pieces)


def wrapped(text: str, first: str = "", rest: str = "") -> str:
    """A paragraph of at most ``WIDTH`` characters per line, code not broken."""
    glued = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), text)
    lines = textwrap.fill(glued, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def table(header: tuple[str, ...], rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> str:
    """A Markdown table."""
    rule = tuple("---:" if place in right else "---" for place in range(len(header)))
    escaped = [tuple(cell.replace("|", r"\|") for cell in row) for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *escaped))


def linked(path: Path, page: Path) -> str:
    """A link to a file from a page."""
    return f"[`{path.name}`]({os.path.relpath(path, page.parent)})"


# ------------------------------------------------------------------------------------------- blocks
def entry(page: Path, group: str, option: str) -> str:
    """Sentence, paper, files and equations of an option."""
    target = composed(group, option)["_target_"]
    parts = documented(target)
    paper, *code = parts.sections["Source"]
    lines = [plain(sentence(group, option)), "", f"- Paper: {plain(paper)}"]
    lines += ["- " + REPOSITORY.sub(r"[\1 @ \2](https://github.com/\1/tree/\2)", plain(one)) for one in code]
    lines += [f"- Files: {linked(source_of(target), page)}, {linked(option_file(group, option), page)}"]
    if base := parent(group, option):
        return "\n".join([*lines, f"- Equations: those of `{base}`."])
    width = max(map(len, parts.equations))
    equations = [f"{label.lower():<{width}}  {text.replace('``', '').removesuffix('.')}" for label, text in parts.equations.items()]
    notes = [part for note in parts.notes for part in ("", wrapped(plain(note)))]
    return "\n".join([*lines, "", "```text", *equations, "```", *notes])


def parameters(page: Path, group: str, option: str) -> str:
    """The parameters of an option with their shipped values; of a variant those that differ from the option it starts from."""
    values, base = composed(group, option), parent(group, option)
    args = {**documented("fedkd.strategy.Strategy").args} if group == "strategy" else {}
    args = {**documented("fedkd.distillation.methods.base.Distiller").args} if group == "distiller" else args
    own = documented(values["_target_"]).args
    if base is not None:
        before = composed(group, base)
        rows = [(f"`{key}`", shown(value), shown(before.get(key))) for key, value in values.items() if before.get(key) != value]
        return table((f"`{group}.`", "shipped", f"`{base}`"), [row for row in rows if row[0] != "`_target_`"], (1, 2))
    extra = yaml.safe_load(option_file(group, option).read_text(encoding="utf-8"))
    inherited = [key for key in args if key in extra and key not in own]
    rows = [(f"`{key}`", shown(values[key]), plain({**args, **own}[key])) for key in [*inherited, *own]]
    return table((f"`{group}.`", "shipped", "meaning"), rows, (1,)) if rows else "No hyperparameters of its own."


def differences(page: Path, group: str, option: str) -> str:
    """The deviations of an option from paper and public code."""
    items = documented(composed(group, option)["_target_"]).sections["Deviations"]
    return "\n".join(wrapped(plain(item), "- ", "  ") for item in items)


def protocol(page: Path) -> str:
    """The parameters of every strategy, as both files of ``conf/protocol`` set them."""
    args = documented("fedkd.strategy.Strategy").args
    files = [composed("protocol", name) for name in ("public_code", "paper")]
    rows = [(f"`{key}`", *(shown(values[key]) for values in files), plain(args[key])) for key in files[0]]
    return table(("`strategy.`", "`public_code`", "`paper`", "meaning"), rows, (1, 2))


def components(page: Path) -> str:
    """The table of ``fedkd describe strategy --table``."""
    from simulations.setup import strategy_table  # torch, for this block alone

    return strategy_table.table()


def tasks(page: Path) -> str:
    """What every strategy can be trained on."""
    from simulations.setup import strategy_table

    return strategy_table.task_table()


def costs(page: Path) -> str:
    """Time and memory of a training step of each method, in ascending order of time."""
    lines = (ROOT / "simulations" / "results" / "distill.txt").read_text(encoding="utf-8").splitlines()
    measured = dict(line.split() for line in lines if not line.startswith("#"))
    names = sorted(
        (key.removeprefix("step_") for key in measured if key.startswith("step_")), key=lambda name: float(measured[f"step_{name}"])
    )
    rows = [(f"`{name}`", measured[f"step_{name}"], measured[f"memory_{name}"]) for name in names]
    return table(("method", "time of a step", "peak memory"), rows, (1, 2))


def options(page: Path) -> str:
    """All groups and options, as ``fedkd describe --markdown`` prints them."""
    from simulations.cli.description import render

    return render(None, None, "markdown")


BLOCKS: dict[str, Callable[..., str]] = {
    "entry": entry,
    "parameters": parameters,
    "differences": differences,
    "protocol": protocol,
    "components": components,
    "tasks": tasks,
    "costs": costs,
    "options": options,
}
"""The kinds of blocks. Each function takes the page and the arguments of the block, and returns Markdown."""


def pages() -> Iterator[Path]:
    """All Markdown files of the repository that have generated blocks."""
    for folder in ("", "fedkd", "strategies", "simulations", "conf"):
        found = (ROOT / folder).rglob("*.md") if folder else ROOT.glob("*.md")
        yield from (path for path in sorted(found) if BLOCK.search(path.read_text(encoding="utf-8")))


def rewritten(page: Path) -> str:
    """The text of a page with all its blocks made anew."""

    def block(found: re.Match[str]) -> str:
        kind, *arguments = found["call"].split()
        return f"{found[1]}{BLOCKS[kind](page, *arguments)}\n{found[3]}"

    return BLOCK.sub(block, page.read_text(encoding="utf-8"))


def unsupported(page: Path) -> list[str]:
    """Means with an interval that a page shows and no file of ``simulations/results`` has."""
    kept = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "simulations" / "results").glob("*/*.md")))
    return [one for one in re.findall(r"\d+\.\d+ ± \d+\.\d+", page.read_text(encoding="utf-8")) if one not in kept]


if __name__ == "__main__":
    for path in pages():
        path.write_text(rewritten(path), encoding="utf-8")
        print(path.relative_to(ROOT))
