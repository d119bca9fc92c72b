"""What ``fedkd describe`` prints: groups, options and parameters, as text, Markdown or JSON."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulations.cli import catalog
from simulations.cli.rendering import as_json, columns, markdown, paragraphs
from simulations.overrides import CONF


def render(group: str | None, option: str | None, form: str = "text", words: Sequence[str] = ()) -> str:
    """The description.

    Args:
        group: of conf, ``run`` or ``distill``; None for all groups.
        option: of the group; None for all.
        form: ``text``, ``markdown`` or ``json``.
        words: overrides; only ``searchpath`` counts.

    Raises:
        ConfigError: there is no such group or option.
    """
    rows = catalog.describe(group, option, words)
    if form == "json":
        return as_json(_option(group, option, rows, words) if group and option else rows)
    if group is None:
        return _groups(rows) if form == "text" else _all_markdown(words)
    if option is None:
        keys = group in catalog.ROOTS
        return _keys(rows, form) if keys else _options(group, rows, form)
    return _option_page(group, option, rows, form, words)


def _groups(rows: Sequence[catalog.Row]) -> str:
    shown = [{**row, "default": row["default"] or "", "options": f"{row['options']} options"} for row in rows]
    text = columns(shown, ("group", "options", "default", "meaning"))
    return f"{text}\n\nA group is chosen as GROUP=OPTION: fedkd describe GROUP lists its options, fedkd describe run the other keys."


def _all_markdown(words: Sequence[str]) -> str:
    parts = []
    for group, rows in catalog.all_groups(words):
        parts.append(f"### `{group}`: {catalog.GROUPS.get(group, '')}\n\n{_options(group, rows, 'markdown')}")
    return "\n\n".join(parts)


def _options(group: str, rows: Sequence[catalog.Row], form: str) -> str:
    if form == "markdown":
        shown = [{"option": row["option"], "description": row["meaning"] + (" (default)" if row["default"] else "")} for row in rows]
        return markdown(shown, ("option", "description"), code=("option",))
    shown = [{"option": f"{row['option']}{' *' if row['default'] else ''}", "description": row["meaning"]} for row in rows]
    note = "\n\n* default" if any(row["default"] for row in rows) else ""
    return columns(shown, ("option", "description"), header=False) + note


def _keys(rows: Sequence[catalog.Row], form: str) -> str:
    names = ("key", "value", "type", "meaning")
    return markdown(rows, names, code=("key", "value", "type")) if form == "markdown" else _plain(paragraphs(rows))


def _option(group: str, option: str, rows: Sequence[catalog.Row], words: Sequence[str]) -> dict[str, Any]:
    found = catalog.source_of(group, option, words)
    path = catalog.file_of(group, option, words)
    return {
        "group": group,
        "option": option,
        "description": catalog.sentence(path),
        "file": str(_short(path)),
        "docstring": "" if found is None else found.docstring,
        "parameters": list(rows),
    }


def _option_page(group: str, option: str, rows: Sequence[catalog.Row], form: str, words: Sequence[str]) -> str:
    page = _option(group, option, rows, words)
    yaml = catalog.file_of(group, option, words).read_text(encoding="utf-8-sig").rstrip()
    names = [name for name in ("key", "value", "type", "meaning") if any(row[name] not in ("", None) for row in rows) or name == "key"]
    rows = [{**row, "key": f"{group}.{row['key']}"} for row in rows] if group != "experiment" else list(rows)
    if form == "markdown":
        parts = [f"### `{group}={option}`", page["description"], page["docstring"], f"```yaml\n{yaml}\n```"]
        parts.append(markdown(rows, names, code=("key", "value", "type")) if rows else "")
        return "\n\n".join(part for part in parts if part)
    parts = [f"{group}={option}  ({page['file']})", _plain(page["docstring"] or page["description"]), yaml]
    parts.append(_plain(paragraphs(rows)) if rows and group != "experiment" else "")
    return "\n\n".join(part for part in parts if part)


def _plain(text: str) -> str:
    """Text without the marks of reStructuredText."""
    return re.sub(r":(?:class|func|mod|data|meth):", "", text).replace("``", "`")


def _short(path: Path) -> Path:
    """Relative to fedkd's folder, or to the current one where it is below."""
    for base in (CONF.parent, Path.cwd()):
        if path.is_relative_to(base):
            return path.relative_to(base)
    return path
