"""The section of a report on distillations, and the user's choice, order and names of methods."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedkd.errors import ConfigError
from simulations.reports.arrangement import find_label
from simulations.reports.attempts import Attempts
from simulations.reports.distillation_groups import DistillationRun, distinct, divergence, groups, read_distillation, students, task
from simulations.reports.figures import distillation as figures
from simulations.reports.figures.drawing import MAX_LINES, Drawing
from simulations.reports.figures.selection import figure_style
from simulations.reports.figures.style import FigureStyle, assign_slots
from simulations.reports.groups import file_slugs, gather
from simulations.reports.options import ReportOptions, names_from, unknown_name
from simulations.reports.run_description import describe_distillations
from simulations.reports.section import ReportSection
from simulations.reports.tables import distillation as tables
from simulations.reports.tables.table import NumberFormat

Labelled = Mapping[str, Sequence[DistillationRun]]
"""Runs that differ in seeds alone, by their label."""


def read_distillations(folders: Sequence[Path]) -> tuple[list[DistillationRun], list[str]]:
    """The finished distillations among ``folders`` without pure teachers, and a note on each excluded one."""
    runs, notes = [], []
    for folder in folders:
        try:
            runs.append(read_distillation(folder))
        except ValueError as error:
            notes.append(f"{folder}: {error}")
    runs, repeated = distinct(runs)
    return students(runs), notes + repeated


def distillation_names(runs: Sequence[DistillationRun]) -> list[str]:
    """All names by which a method can be called."""
    return list(dict.fromkeys(name for one in runs for name in (one.choice("distiller"), one.method)))


def divide(options: ReportOptions, federated: Sequence[str], methods: Sequence[str]) -> tuple[ReportOptions, ReportOptions]:
    """The options of federated runs and those of distillations, each with the names that it knows.

    Args:
        options: of the report.
        federated: names of strategies, lines and settings.
        methods: names of distillation methods.

    Raises:
        ConfigError: a name is known to neither.
    """
    known = list(dict.fromkeys([*federated, *methods]))
    found = {name: names_from(getattr(options, name), known, name) for name in ("strategies", "order")}
    labels: dict[str, str] = {}
    for name, text in options.labels.items():
        label = find_label(name, text, known)
        if label is None:
            raise unknown_name(name, known, "labels")
        labels |= dict([label])
    settings = [name for name in federated if name] if federated else []
    if options.settings and not settings:
        raise ConfigError(f"settings must be empty without federated runs, got {list(options.settings)}")
    parts = []
    for names in (set(federated), set(methods)):
        mine = {key: tuple(name for name in value if name in names) for key, value in found.items()}
        parts.append(replace(options, **mine, labels={name: text for name, text in labels.items() if name in names}))  # type: ignore[arg-type]
    return parts[0], parts[1]


def distillation_section(
    runs: Sequence[DistillationRun],
    output: Path,
    options: ReportOptions,
    attempts: Attempts,
    diverged: Sequence[DistillationRun] = (),
) -> ReportSection:
    """The tables and figures of distillations.

    Args:
        runs: of :func:`read_distillations`.
        output: the folder of the report.
        options: with names of methods alone.
        attempts: gains what is missing or fails.
        diverged: runs without results, which are counted in the rows of their groups.
    """
    runs = [one for one in runs if not options.strategies or _is_called(one, options.strategies)]
    names = {
        one.choice("distiller"): options.labels[name]
        for one in runs
        for name in (one.method, one.choice("distiller"))
        if name in options.labels
    }
    labelled = in_order(groups(runs, names), options.order)
    rows = {name: name + divergence(same, diverged) for name, same in labelled.items()}
    form = NumberFormat(options.kind, options.decimals)
    make = attempts.make
    information = make("table flow", tables.layer_information, labelled)
    steps = make("table ladder", tables.ladder, labelled) or {}
    found = [
        make("table distillation", tables.table, labelled, form, rows),
        make("table costs", tables.costs, labelled, form),
        make("table members", tables.members, labelled, form),
        make("table domains", tables.domains, runs, form, names),
        make("table ladder", tables.teacher_student, steps) if steps else None,
    ]
    numbers = {"trainings": make("table trainings", tables.trainings, labelled), "flow": information}
    slots = look_of_labels(labelled, steps)
    style = figure_style(options, slots | {rows[name]: slots[name] for name in labelled})
    drawings = []
    for number, lines in enumerate(together(labelled), 1):
        stem = output / ("curves" if number == 1 else f"curves_{number}")
        drawings.append(Drawing("Accuracy by epoch", stem, figures.curves, ({rows[name]: same for name, same in lines.items()},), style))
    if information is not None:
        drawings.append(Drawing("Information of each layer", output / "flow", figures.layer_information, (information,), style))
    if steps:
        drawings.append(Drawing("Student vs teacher accuracy", output / "ladder", figures.ladder, (steps,), style))
    drawings += image_sheets(labelled, output, style)
    written = {name: table for name, table in numbers.items() if table is not None}
    facts = {"Distillations": f"{len(runs)} in {len(labelled)} rows", **describe_distillations(runs)}
    return ReportSection("Distillations", "distillation", facts, [one for one in found if one is not None], drawings, written)


def _is_called(one: DistillationRun, names: Sequence[str]) -> bool:
    """The method has one of these names."""
    return one.choice("distiller") in names or one.method in names


def in_order(labelled: Labelled, order: Sequence[str]) -> dict[str, Sequence[DistillationRun]]:
    """The groups with the methods of ``order`` first."""

    def rank(name: str) -> int:
        return next((place for place, method in enumerate(order) if _is_called(labelled[name][0], [method])), len(order))

    return {name: labelled[name] for name in sorted(labelled, key=rank)}


def look_of_labels(labelled: Labelled, steps: Mapping[str, object]) -> dict[str, int]:
    """A look for each label, and for each method of the ladder that of its first label."""
    slots = assign_slots({name: name for name in labelled})
    first = {method: next((name for name in labelled if name.endswith(f" > {method}")), None) for method in steps}
    return slots | {method: slots[name] for method, name in first.items() if name is not None}


def together(labelled: Labelled) -> list[dict[str, Sequence[DistillationRun]]]:
    """The lines of one figure each: students of one task, as many as can be told apart, with the student trained with labels in each."""
    parts: list[list[str]] = []
    for names in gather(list(labelled), lambda name: (labelled[name][0].choice("student"), task(labelled[name][0]))):
        base = [name for name in names if labelled[name][0].choice("distiller") == "none"][:1]
        others, room = [name for name in names if name not in base], MAX_LINES - len(base)
        parts += [[*base, *others[start : start + room]] for start in range(0, max(len(others), 1), room)]
    return [{name: labelled[name] for name in names} for names in sorted(parts, key=len, reverse=True)]


def image_sheets(labelled: Labelled, output: Path, style: FigureStyle) -> list[Drawing]:
    """A sheet of synthetic images per group, of the first seed that has the file."""
    saved = {name: [one for one in same if (one.folder / "synthetic_images.npz").is_file()] for name, same in labelled.items()}
    found = {name: same[0] for name, same in saved.items() if same}
    sheets = []
    for (name, one), slug in zip(found.items(), file_slugs(list(found)), strict=True):
        stem = output / ("synthetic_images" if len(found) == 1 else f"synthetic_images_{slug}")
        title = f"Synthetic images, {name}, seed {one.seed}"
        sheets.append(Drawing(title, stem, figures.synthetic_images, (one.folder / "synthetic_images.npz",), style))
    return sheets
