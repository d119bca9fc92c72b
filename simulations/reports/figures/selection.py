"""The figures that a report of federated runs has."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedkd.errors import RunFolderError
from simulations.reports.arrangement import ordered_lines, ordered_settings
from simulations.reports.attempts import Attempts
from simulations.reports.curves import EMPTY, X_AXES, axes_of, curve
from simulations.reports.figures import comparison, convergence, drift
from simulations.reports.figures.drawing import MAX_LINES, MAX_ROWS, Drawing, parts
from simulations.reports.figures.label_distribution import label_distribution
from simulations.reports.figures.legend import seeds_text
from simulations.reports.figures.style import FigureStyle, assign_slots
from simulations.reports.groups import Group, divergence, gather
from simulations.reports.metrics import AXIS_LABELS
from simulations.reports.options import ReportOptions
from simulations.reports.statistics import bottom_tenth
from simulations.reports.summary import by_seed, has_clock, last_rounds
from simulations.reports.tables.clients import (
    MAX_CLASSES,
    PHASES,
    architectures,
    class_accuracies,
    final_accuracies,
    group_accuracies,
    label_counts,
)
from simulations.reports.tables.drift import first_rounds, task_matrix
from simulations.reports.tables.mathematics import has_formula
from simulations.run_folder.metric_names import STRATEGY_NAMES
from simulations.run_folder.reader import SETTING, natural_order

CAPTIONS = {"rounds": "Accuracy by round", "bytes": "Accuracy by traffic", "time": "Accuracy by simulated time"}
"""Captions of the curves, by horizontal axis."""


def style_of(groups: Sequence[Group], options: ReportOptions) -> FigureStyle:
    """The look of all figures of a report: each line has one color, dash pattern and marker."""
    strategies = {one.line: one.strategy for one in groups}
    names = {line: STRATEGY_NAMES.get(strategies[line], strategies[line]) for line in ordered_lines(groups)}
    return figure_style(options, assign_slots(names))


def figure_style(options: ReportOptions, slots: dict[str, int]) -> FigureStyle:
    """The look of figures by the options of a report."""
    width = FigureStyle.width if options.width is None else float(options.width)
    formulas = any(map(has_formula, options.labels.values()))
    return FigureStyle(width, float(options.font_size), options.formats, options.band, options.kind, formulas=formulas, slots=slots)


def counted(groups: Sequence[Group], on: Sequence[Group], style: FigureStyle) -> tuple[list[Group], FigureStyle]:
    """The groups that have results, each under a line that says how many of its runs in ``on`` diverged, and the style with these lines."""
    names = {line: line + divergence(one for one in on if one.line == line) for line in ordered_lines(groups)}
    slots = {name: style.slots[line] for line, name in names.items() if line in style.slots}
    shown = [replace(one, line=names[one.line], names=(*one.names, one.line)) for one in groups if one.runs]
    return shown, replace(style, slots={**style.slots, **slots})


def planned(groups: Sequence[Group], output: Path, options: ReportOptions, style: FigureStyle, attempts: Attempts) -> list[Drawing]:
    """All figures of federated runs but those of generators.

    Args:
        groups: of all settings. Those of which all runs diverged are only counted.
        output: the folder of the report.
        options: of the report.
        style: of :func:`style_of`.
        attempts: gains the figures that are missing or fail.
    """
    found: list[Drawing] = []
    scored, look = counted(groups, groups, style)
    baseline, several = options.baseline or "fedavg", len(ordered_settings(scored)) > 1

    def add(name: str, function: Callable[..., list[Drawing]], *given: Any) -> None:
        found.extend(attempts.make(f"figure {name}", function, *given) or [])

    if several:
        for suffix, part in parts(scored, baseline, MAX_LINES):
            add(f"by_setting{suffix}", by_setting, part, output / f"by_setting{suffix}", options, look)
            if options.panels == "settings":
                add(f"convergence_panels{suffix}", panels, part, output, suffix, options, look)
    for on in gather(sorted(groups, key=lambda one: one.place), lambda one: one.first.part(SETTING)):
        scored, look = counted(groups, on, style)
        same = sorted((one for one in scored if one.first.part(SETTING) == on[0].first.part(SETTING)), key=lambda one: one.place)
        if not same:
            continue
        name, here = (f"_{same[0].slug}", f", {same[0].setting}") if several and same[0].setting else ("", "")
        for suffix, part in parts(scored, baseline, MAX_LINES):
            if options.panels == "none" or not several:
                add(f"convergence{name}{suffix}", curves, part, same, here, output, f"{name}{suffix}", options, look)
            if mine := [one for one in part if one in same]:
                add(f"networks{name}{suffix}", networks, mine, here, output / f"networks{name}{suffix}", options, look)
                add(f"drift{name}{suffix}", drift_figure, mine, scored, here, output / f"drift{name}{suffix}", options, look)
        for suffix, part in parts(scored, baseline, MAX_ROWS):
            mine = [one for one in part if one in same]
            for kind, function in ROW_FIGURES.items() if mine else ():
                add(f"{kind}{name}{suffix}", function, mine, here, output / f"{kind}{name}{suffix}", options, look)
        if any(run.knows_labels for one in same for run in one.runs):
            add(f"label_distribution{name}", labels, same, here, output / f"label_distribution{name}", style)
    return found


def labels(same: Sequence[Group], here: str, stem: Path, style: FigureStyle) -> list[Drawing]:
    """The label distribution of one setting, of the lowest seed.

    Raises:
        RunFolderError: no run has a partition that can be read.
    """
    counts = label_counts(same)
    if not counts:
        raise RunFolderError(f"partition.npz must hold the array 'counts', not all 0 ({same[0].label})")
    return [Drawing(f"Label distribution{here}, seed {min(counts)}", stem, label_distribution, (counts[min(counts)],), style)]


def axis_labels(options: ReportOptions) -> dict[str, str]:
    """Axis labels by column, of the curves that the options choose."""
    return {metric.column: metric.axis for metric in options.metrics}


def lines_of(part: Sequence[Group], same: Sequence[Group], along: str, options: ReportOptions) -> dict[str, dict[str, pd.DataFrame]]:
    """The curves of a part by line and column, without points where a line is missing on the setting of ``same``."""
    columns = list(axis_labels(options))
    lines = {one.line: dict.fromkeys(columns, EMPTY) for one in part}
    for one in part:
        if one in same:
            lines[one.line] = {column: curve(one, column, along, options.kind, options.smoothing) for column in columns}
    return lines


def curves(
    part: Sequence[Group], same: Sequence[Group], here: str, output: Path, suffix: str, options: ReportOptions, style: FigureStyle
) -> list[Drawing]:
    """Accuracy by round, by traffic and by simulated time on one setting."""
    found = []
    for along in axes_of(same):
        lines = lines_of(part, same, along, options)
        if any(len(table) for tables in lines.values() for table in tables.values()):
            stem = output / f"convergence{_ending(along)}{suffix}"
            given, named = (lines,), {"along": along, "axis_labels": axis_labels(options)}
            smooth = replace(style, smoothing=options.smoothing)
            found.append(Drawing(f"{CAPTIONS[along]}{here}", stem, convergence.convergence, given, smooth, named))
    return found


def panels(part: Sequence[Group], output: Path, suffix: str, options: ReportOptions, style: FigureStyle) -> list[Drawing]:
    """The same curves for all settings in one figure, a panel per setting."""
    found = []
    for along in axes_of(part):
        settings = {}
        for setting in ordered_settings(part):
            same = [one for one in part if one.setting == setting]
            settings[setting] = lines_of(part, same, along, options)
        if any(len(table) for lines in settings.values() for tables in lines.values() for table in tables.values()):
            stem = output / f"convergence{_ending(along)}_panels{suffix}"
            named = {"along": along, "axis_labels": axis_labels(options), "width": options.width}
            smooth = replace(style, smoothing=options.smoothing)
            found.append(Drawing(f"{CAPTIONS[along]}, by setting", stem, convergence.panels, (settings,), smooth, named))
    return found


def drift_figure(
    mine: Sequence[Group], every: Sequence[Group], here: str, stem: Path, options: ReportOptions, style: FigureStyle
) -> list[Drawing]:
    """Accuracy over time and by task of one setting whose data drift; none without drift.

    Args:
        mine: groups of the setting.
        every: groups of all settings, among which the same lines without drift are found.
        here: the setting in a caption.
        stem: the files without suffix.
        options: of the report.
        style: of the figure.
    """
    mine = [one for one in mine if all(len(first_rounds(run)) > 1 for run in one.runs)]
    if not mine:
        return []
    incremental = all(task_matrix(run).size for one in mine for run in one.runs)
    column = "seen_classes_accuracy" if incremental else "prequential_accuracy"
    lines = {one.line: curve(one, column, "rounds", options.kind, options.smoothing) for one in mine}
    bounds, matrices = {}, {}
    for one in mine if incremental else ():
        matrices[one.line] = 100 * np.mean([task_matrix(run) for run in one.runs], axis=0)
        joint = [other for other in every if other is not one and without_drift(other) == without_drift(one)]
        if joint:
            bounds[one.line] = 100 * float(np.mean(by_seed(joint[0], "global_test_accuracy_final")))
    label = "all tasks so far" if incremental else "next round's local data"
    given = (lines, first_rounds(mine[0].runs[0])[1:], label, bounds, matrices)
    return [Drawing(f"Accuracy over time{here}", stem, drift.over_time, given, replace(style, smoothing=options.smoothing))]


def without_drift(one: Group) -> frozenset[tuple[str, Any]]:
    """The configuration of a group without its drift and its evaluation."""
    return frozenset((key, value) for key, value in one.first.values.items() if not key.startswith(("drift.", "evaluation.")))


def _ending(along: str) -> str:
    """The horizontal axis in the name of a file."""
    return {"rounds": "", "bytes": "_by_bytes", "time": "_by_time"}[along]


def by_seed_figure(groups: Sequence[Group], here: str, stem: Path, options: ReportOptions, style: FigureStyle) -> list[Drawing]:
    """The result of each seed on one setting."""
    axes = {metric.name: metric.axis for metric in options.metrics}
    results = {one.line: pd.DataFrame({name: by_seed(one, name) for name in axes}, index=list(one.seeds)) for one in groups}
    if not any(table.notna().any().any() for table in results.values()):
        return []
    last = f"last {last_rounds(groups)}"
    which = last if all(metric.name.endswith("last10") for metric in options.metrics) else options.metrics[0].heading
    return [Drawing(f"Accuracy by seed, {which}{here}", stem, comparison.by_seed, (results, axes), style)]


def target_figure(groups: Sequence[Group], here: str, stem: Path, options: ReportOptions, style: FigureStyle) -> list[Drawing]:
    """The resources that each seed spends until the target; none without a target."""
    if options.target is None:
        return []
    resources = [name for name in comparison.COST_AXES if name != "time" or has_clock(groups)]
    costs = {one.line: {name: cost(one, name, options.target) for name in resources} for one in groups}
    title = f"Cost to {round(100 * options.target, 6):g} %, by seed{here}"
    return [Drawing(title, stem, comparison.to_target, (costs,), style, {"target": options.target})]


def clients_figure(groups: Sequence[Group], here: str, stem: Path, options: ReportOptions, style: FigureStyle) -> list[Drawing]:
    """The distribution of accuracy over clients; none without accuracies of clients."""
    clients = {one.line: [final_accuracies(run) for run in one.runs] for one in groups}
    clients = {line: seeds for line, seeds in clients.items() if all(map(len, seeds))}
    if not clients:
        return []
    tenths = {line: float(np.mean([bottom_tenth(seed) for seed in seeds])) for line, seeds in clients.items()}
    named = {"seeds": seeds_text(map(len, clients.values()))}
    return [Drawing(f"Local test accuracy over clients{here}", stem, comparison.clients, (clients, tenths), style, named)]


def classes_figure(groups: Sequence[Group], here: str, stem: Path, options: ReportOptions, style: FigureStyle) -> list[Drawing]:
    """The accuracy of each class; none without accuracies of classes, or where runs differ in their number."""
    classes = {one.line: [class_accuracies(run) for run in one.runs] for one in groups}
    classes = {line: seeds for line, seeds in classes.items() if all(map(len, seeds)) and len({len(seed) for seed in seeds}) == 1}
    if len({len(seeds[0]) for seeds in classes.values()}) != 1:
        return []
    means, named = {line: np.mean(seeds, axis=0) for line, seeds in classes.items()}, {"seeds": seeds_text(map(len, classes.values()))}
    title = f"Global test accuracy by class, last {last_rounds(groups)}{here}"
    return [Drawing(title, stem, comparison.classes, (means,), style, named)]


def networks(groups: Sequence[Group], here: str, stem: Path, options: ReportOptions, style: FigureStyle) -> list[Drawing]:
    """Local test accuracy by the clients' networks; none where every run has one network."""
    seeds = {one.line: [architectures(run.clients) for run in one.runs] for one in groups}
    seeds = {line: runs for line, runs in seeds.items() if any(len(run) > 1 for run in runs)}
    names = sorted({name for runs in seeds.values() for run in runs for name in run})
    if not seeds:
        return []
    column = "local_test_accuracy"
    lines = {
        line: {column: [comparison.spread_of([100 * run.get(name, np.nan) for run in runs], options.kind) for name in names]}
        for line, runs in seeds.items()
    }
    title = f"Local test accuracy by network, last {last_rounds(groups)}{here}"
    return [Drawing(title, stem, comparison.by_network, (lines, names, {column: AXIS_LABELS[column]}), style)]


def groups_figure(groups: Sequence[Group], here: str, stem: Path, options: ReportOptions, style: FigureStyle) -> list[Drawing]:
    """The accuracy of each domain or other group; none where clients are not of one group each, or where there are many groups."""
    found = {one.line: [group_accuracies(run) for run in one.runs] for one in groups}
    found = {line: seeds for line, seeds in found.items() if all(seeds)}
    names = sorted({name for seeds in found.values() for seed in seeds for name in seed}, key=natural_order)
    if not 1 < len(names) <= MAX_CLASSES:
        return []
    means = {line: np.array([np.mean([seed.get(name, np.nan) for seed in seeds]) for name in names]) for line, seeds in found.items()}
    named = {"seeds": seeds_text(map(len, found.values())), "names": names}
    return [Drawing(f"Local test accuracy by group, last {last_rounds(groups)}{here}", stem, comparison.classes, (means,), style, named)]


def phases_figure(groups: Sequence[Group], here: str, stem: Path, options: ReportOptions, style: FigureStyle) -> list[Drawing]:
    """Seconds per round by phase."""
    seconds = {one.line: {title: float(np.mean(by_seed(one, f"{name}_median"))) for name, title in PHASES.items()} for one in groups}
    named = {"seeds": seeds_text(len(one.runs) for one in groups)}
    return [Drawing(f"Seconds per round by phase{here}", stem, comparison.phases, (seconds,), style, named)]


ROW_FIGURES: dict[str, Callable[..., list[Drawing]]] = {
    "spread": by_seed_figure, "to_target": target_figure, "clients": clients_figure, "groups": groups_figure,
    "classes": classes_figure, "phases": phases_figure,
}  # fmt: skip
"""The functions that plan a figure with a row per strategy on one setting, by the name of its files."""


def cost(one: Group, resource: str, target: float) -> list[tuple[float, bool]]:
    """For each seed the amount of a resource until the target, and whether the target is reached."""
    scale = X_AXES[resource][1]
    reached = np.isfinite(by_seed(one, f"{resource}_to_target", target))
    return [(scale * value, bool(there)) for value, there in zip(by_seed(one, f"{resource}_spent", target), reached, strict=True)]


def by_setting(groups: Sequence[Group], stem: Path, options: ReportOptions, style: FigureStyle) -> list[Drawing]:
    """Accuracy against the setting; none without results."""
    names = ordered_settings(groups)
    lines: dict[str, dict[str, list[comparison.Spread | None]]] = {
        one.line: {metric.name: [None] * len(names) for metric in options.metrics} for one in groups
    }
    for one in groups:
        for metric in options.metrics:
            spread = comparison.spread_of(100 * np.array(by_seed(one, metric.name), float), options.kind)
            lines[one.line][metric.name][names.index(one.setting)] = spread
    axes = {metric.name: metric.axis for metric in options.metrics}
    which = options.metrics[0].heading if options.metric is not None else "last 10"
    title = f"Accuracy by setting, {which.replace('last 10', f'last {last_rounds(groups)}')}"
    return [Drawing(title, stem, comparison.by_setting, (lines, names, axes), style)]
