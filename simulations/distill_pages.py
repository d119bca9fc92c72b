"""What a report says of distillations: the tables and figures of all that were found."""

from collections.abc import Sequence
from pathlib import Path

from simulations import distill_figures
from simulations.distill_domains import domains
from simulations.distill_report import LEGEND, costs, distinct, groups, ladder, monotone, read, table
from simulations.tables import markdown_table


def write(folders: Sequence[Path], output: Path) -> tuple[str, list[Path], list[str]]:
    """The tables as text, the files that were written, and a note on each distillation left out."""
    lessons, notes = [], []
    for folder in folders:
        try:
            lessons.append(read(folder))
        except ValueError as error:
            notes.append(f"{folder}: {error}")
    if not lessons:
        return "", [], notes
    lessons, again = distinct(lessons)
    notes += again
    labelled = groups(lessons)
    text = f"\n{markdown_table(table(labelled))}\n\n{LEGEND}\n\n{markdown_table(costs(labelled))}\n"
    if left_out := domains(lessons):
        text += f"\n{markdown_table(left_out)}\n\nAccuracy in % on the domain left out; the mean over them, and its gain, by seed.\n"
    steps = ladder(labelled)
    if steps:
        found = {method: monotone(frame) for method, frame in steps.items()}
        columns = {"strategy": list(steps), "teachers": [str(frame["name"].nunique()) for frame in steps.values()]}
        columns |= {
            "Spearman's rho": [f"{rho:+.2f}" for rho, _ in found.values()],
            "slope": [f"{slope:+.2f}" for _, slope in found.values()],
        }
        text += f"\n{markdown_table(columns)}\n\nOf the student's mean accuracy over seeds against the teacher's.\n"
    paths = [*distill_figures.curves(labelled, output / "curves"), *(distill_figures.ladder(steps, output / "ladder") if steps else ())]
    (output / "distillation.md").write_text(text, encoding="utf-8")
    return text, [output / "distillation.md", *paths], notes
