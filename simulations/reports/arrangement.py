"""The user's choice, order and names of strategies and settings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedkd.errors import ConfigError
from simulations.reports.groups import Group
from simulations.reports.options import ReportOptions, find_name, names_from, unknown_name
from simulations.run_folder.metric_names import is_accuracy


def arrange(groups: Sequence[Group], options: ReportOptions) -> list[Group]:
    """The groups that ``options`` choose, in their order and under their names.

    Raises:
        ConfigError: an option names a strategy, a setting or a metric that no group has, no group is left, or two lines would have one
            name.
    """
    groups = choose(groups, options)
    known = [name for one in groups for run in one.runs for name in map(str, run.metrics) if is_accuracy(name)]
    if known and options.metric is not None and options.metrics[0].column not in known:
        raise unknown_name(options.metric, list(dict.fromkeys(known)), "metric")
    settings = list(dict.fromkeys(one.setting for one in sorted(groups, key=lambda one: one.place)))
    if options.settings:
        settings = names_from(options.settings, settings, "settings")
    lines = ordered_lines(groups)
    first = names_from(options.order, names_of(groups), "order")
    ranks = {one.line: next((rank for rank, name in enumerate(first) if one.is_called(name)), len(first)) for one in groups}
    tuned = {one.line: one.tuned for one in groups}
    lines = sorted(lines, key=lambda line: (tuned[line], ranks[line], lines.index(line)))
    placed = [replace(one, place=(settings.index(one.setting), lines.index(one.line))) for one in groups]
    return relabel(sorted(placed, key=lambda one: (one.place[0], one.tuned, one.place[1])), options.labels)


def choose(groups: Sequence[Group], options: ReportOptions) -> list[Group]:
    """The groups of the chosen strategies on the chosen settings.

    Raises:
        ConfigError: a name is not known, or no group is left.
    """
    strategies = names_from(options.strategies, names_of(groups), "strategies")
    settings = names_from(options.settings, [one.setting for one in groups], "settings")
    kept = [
        one
        for one in groups
        if (not strategies or any(one.is_called(name) for name in strategies)) and (not settings or one.setting in settings)
    ]
    if groups and not any(one.runs for one in kept):
        raise ConfigError(f"strategies and settings must leave a finished run, got {strategies} and {settings}; no finished run has both")
    return kept


def ordered_lines(groups: Sequence[Group]) -> list[str]:
    """The lines of all settings, in the order of the report."""
    return list(dict.fromkeys(one.line for one in sorted(groups, key=lambda one: one.place[1])))


def ordered_settings(groups: Sequence[Group]) -> list[str]:
    """The settings, in the order of the report."""
    return list(dict.fromkeys(one.setting for one in sorted(groups, key=lambda one: one.place[0])))


def relabel(groups: Sequence[Group], labels: Mapping[str, str]) -> list[Group]:
    """The groups under the user's names.

    Args:
        groups: as they are called by default.
        labels: by the name of a strategy, a line or a setting, the text that replaces it.

    Raises:
        ConfigError: a name is not known, or two lines or two settings would have the same text.
    """
    if not labels:
        return list(groups)
    known = [*names_of(groups), *(one.setting for one in groups)]
    texts: dict[str, str] = {}
    for name, text in labels.items():
        found = find_label(name, text, known)
        if found is None:
            raise unknown_name(name, known, "labels")
        texts |= dict([found])
    renamed = [_renamed(one, texts) for one in groups]
    for part in ("line", "setting"):
        before: dict[str, str] = {}
        for old, new in zip(groups, renamed, strict=True):
            text = getattr(new, part)
            if before.setdefault(text, getattr(old, part)) != getattr(old, part):
                raise ConfigError(
                    f"labels must give different names, got {text!r} for {before[text]!r} and {getattr(old, part)!r}; name whole rows"
                )
    return renamed


def names_of(groups: Sequence[Group]) -> list[str]:
    """All names by which a strategy or a line can be called."""
    return list(dict.fromkeys(name for one in groups for name in (one.strategy, *one.names, one.line)))


def find_label(name: str, text: str, known: Sequence[str]) -> tuple[str, str] | None:
    """A name as it is known, and its text; None where it is not known. ``alpha`` and ``0.1=strong`` are ``alpha 0.1`` and ``strong``."""
    words = f"{name}={text}".split("=")
    cuts = [name.count("=") + 1, *range(1, len(words))]
    for cut in cuts:
        found = find_name("=".join(words[:cut]), known)
        if found is not None:
            return found, "=".join(words[cut:])
    return None


def _renamed(one: Group, texts: Mapping[str, str]) -> Group:
    """The group under these names."""
    setting = texts.get(one.setting, one.setting)
    name, rest = one.names[0], one.line.removeprefix(one.names[0])
    whole = next((texts[key] for key in (one.line, one.names[1]) if key in texts and rest), None)
    shown = texts.get(one.strategy, texts.get(name, name))
    line = f"{shown}{rest}" if whole is None else whole
    label = ", ".join(text for text in ([line, setting] if whole is not None else [shown, setting, rest.removeprefix(", ")]) if text)
    return replace(one, label=label, line=line, setting=setting, names=(*one.names, one.line))
