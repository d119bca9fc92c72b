"""What a report says of distillations: the tables and figures of all that were found."""

from collections.abc import Sequence
from pathlib import Path

from simulations import distill_figures
from simulations.distill_domains import domains
from simulations.distill_report import costs, distinct, groups, ladder, members, ordered, read, students, table, trainings
from simulations.drawings import Drawing
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
    drawings = [Drawing("Accuracy by epoch", output / "curves", distill_figures.curves, (labelled, output / "curves"))]
    if steps := ladder(labelled):
        tables.append(ordered(steps))
        drawings.append(Drawing("Students by their teachers", output / "ladder", distill_figures.ladder, (steps, output / "ladder")))
    found = [one for one in tables if one is not None]
    return Part("Distillations", "distillation", found, drawings, {"trainings": trainings(labelled)}), notes + again
