"""What a report says of distillations: the tables and figures of all that were found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from simulations import distill_figures
from simulations.distill_domains import domains
from simulations.distill_report import costs, flows, ladder, members, ordered, table, trainings
from simulations.drawings import LINES, Drawing
from simulations.groups import gather
from simulations.lessons import Lesson, distinct, groups, read, students, task
from simulations.parts import Part


def part(folders: Sequence[Path], output: Path) -> tuple[Part | None, list[str]]:
    """The tables and figures (to be drawn) of finished distillations, None without any; and a note on each that is left out."""
    lessons, notes = [], []
    for folder in folders:
        try:
            lessons.append(read(folder))
        except ValueError as error:
            notes.append(f"{folder}: {error}")
    if not lessons:
        return None, notes
    lessons, again = distinct(lessons)
    lessons = students(lessons)
    labelled = groups(lessons)
    tables = [table(labelled), costs(labelled), members(labelled), domains(lessons)]
    drawings = []
    for number, lines in enumerate(together(labelled), 1):
        stem = output / ("curves" if number == 1 else f"curves_{number}")
        drawings.append(Drawing("Accuracy by epoch", stem, distill_figures.curves, (lines, stem)))
    behind = {"trainings": trainings(labelled)}
    if (known := flows(labelled)) is not None:
        behind["flow"] = known
        drawings.append(Drawing("Information of each layer", output / "flow", distill_figures.flow, (known, output / "flow")))
    if steps := ladder(labelled):
        tables.append(ordered(steps))
        drawings.append(Drawing("Students by their teachers", output / "ladder", distill_figures.ladder, (steps, output / "ladder")))
    found = [one for one in tables if one is not None]
    return Part("Distillations", "distillation", found, drawings, behind), notes + again


def together(labelled: Mapping[str, Sequence[Lesson]]) -> list[dict[str, Sequence[Lesson]]]:
    """Lines of one figure each: students of one task, at most as many as can be told apart, the one trained with labels in each."""
    parts = []
    for names in gather(list(labelled), lambda name: (labelled[name][0].choice("student"), task(labelled[name][0]))):
        base = [name for name in names if labelled[name][0].choice("distiller") == "none"][:1]
        others, room = [name for name in names if name not in base], LINES - len(base)
        parts += [[*base, *others[start : start + room]] for start in range(0, max(len(others), 1), room)]
    return [{name: labelled[name] for name in names} for names in sorted(parts, key=len, reverse=True)]
