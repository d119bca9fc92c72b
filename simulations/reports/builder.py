"""``fedkd report``: tables and figures from run folders. It reads files only and never trains.

Headlines are the last round and the mean of the last ten evaluated rounds. The best round is never used: it would select on the test set.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fedkd.errors import ConfigError, RunFolderError, require
from simulations.overrides import nearest
from simulations.reports import html
from simulations.reports.distillation_groups import DistillationRun, distinct, groups, read_distillation, students, task
from simulations.reports.figures import distillation, generator, selection
from simulations.reports.figures.selection import LINES, Drawing
from simulations.reports.groups import Group, comparable, gather, group
from simulations.reports.section import Note, ReportSection, excluded_runs
from simulations.reports.statistics import INTERVALS
from simulations.reports.summary import is_baseline, results
from simulations.reports.tables import clients as client_tables
from simulations.reports.tables import federated as federated_tables
from simulations.reports.tables.distillation import costs, domains, flows, ladder, members, ordered, table, trainings
from simulations.reports.tables.federated import comparisons, unpaired
from simulations.reports.tables.table import Table
from simulations.run_folder.reader import RUN_FILES, SETTING, find_run_folders, is_distillation, read_run


def part(folders: Sequence[Path], output: Path) -> tuple[ReportSection | None, list[str]]:
    """The tables and figures (to be drawn) of finished distillations, None without any; and a note on each that is left out."""
    lessons, notes = [], []
    for folder in folders:
        try:
            lessons.append(read_distillation(folder))
        except ValueError as error:
            notes.append(f"{folder}: {error}")
    if not lessons:
        return None, notes
    lessons, again = distinct(lessons)
    lessons = students(lessons)
    labelled = groups(lessons)
    tables = [table(labelled), costs(labelled), members(labelled), domains(lessons)]
    selection = []
    for number, lines in enumerate(together(labelled), 1):
        stem = output / ("curves" if number == 1 else f"curves_{number}")
        selection.append(Drawing("Accuracy by epoch", stem, distillation.curves, (lines, stem)))
    behind = {"trainings": trainings(labelled)}
    if (known := flows(labelled)) is not None:
        behind["flow"] = known
        selection.append(Drawing("Information of each layer", output / "flow", distillation.flow, (known, output / "flow")))
    if steps := ladder(labelled):
        tables.append(ordered(steps))
        selection.append(Drawing("Students by their teachers", output / "ladder", distillation.ladder, (steps, output / "ladder")))
    found = [one for one in tables if one is not None]
    return ReportSection("Distillations", "distillation", found, selection, behind), notes + again


def together(labelled: Mapping[str, Sequence[DistillationRun]]) -> list[dict[str, Sequence[DistillationRun]]]:
    """Lines of one figure each: students of one task, at most as many as can be told apart, the one trained with labels in each."""
    parts = []
    for names in gather(list(labelled), lambda name: (labelled[name][0].choice("student"), task(labelled[name][0]))):
        base = [name for name in names if labelled[name][0].choice("distiller") == "none"][:1]
        others, room = [name for name in names if name not in base], LINES - len(base)
        parts += [[*base, *others[start : start + room]] for start in range(0, max(len(others), 1), room)]
    return [{name: labelled[name] for name in names} for names in sorted(parts, key=len, reverse=True)]


WRITTEN = "written.txt"
"""The names of the files that a report has written, so that the next one in the same folder leaves nothing of it beside its own."""


def collect(folders: Sequence[Path], until: int | None = None) -> tuple[list[Group], list[str]]:
    """The groups of comparable runs among ``folders``, and a note on each run left out.

    With ``until``, every run counts as if it had ended after that round; runs that are shorter are left out.
    """
    runs, notes = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder, until))
        except ValueError as error:
            notes.append(f"{folder}: {error}")
    kept, unlike = comparable(runs)
    return group(kept), notes + unlike


def tables(groups: Sequence[Group], baseline: str = "fedavg", target: float | None = None, kind: str = "t") -> list[Table]:
    """All tables that these groups give."""
    found = [
        federated_tables.headlines(groups, kind),
        federated_tables.way(groups, target, kind),
        federated_tables.differences(groups, baseline, kind),
        comparisons(groups, baseline, kind),
        *federated_tables.by_setting(groups, kind),
        client_tables.server_side(groups, kind),
        client_tables.clients(groups, kind),
        client_tables.by_network(groups, kind),
        client_tables.classes(groups, kind),
        client_tables.skew(groups, kind),
        client_tables.phases(groups, kind),
    ]
    return [table for table in found if table is not None]


def made(folder: Path) -> Path:
    """The folder, which is there now."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class Options:
    """How it is reported: the strategy with which others are compared, the accuracy to reach (in 0..1), the kind of interval, the round after
    which runs count as ended, and whether figures are drawn."""

    baseline: str | None = None
    target: float | None = None
    kind: str = "t"
    until: int | None = None
    figures: bool = True


def build_report(folders: Sequence[Path], output: Path | None = None, options: Options | None = None) -> Path:
    """Write the report of the runs in ``folders``, and print its tables and the paths of its files.

    Args:
        folders: run folders, or parents of run folders.
        output: the folder of the report; None for ``report`` beside the runs.
        options: how the runs are reported; None for the defaults.

    Returns:
        The folder of the report.

    Raises:
        RunFolderError: a folder does not exist, or no finished run is in ``folders``.
        ConfigError: an option is wrong, or ``output`` cannot be written.
    """
    options = Options() if options is None else options
    require(options.target is None or 0 < options.target <= 1, "--target", "must be an accuracy in 0..1 (0.9 is 90 %)", options.target)
    found = find_run_folders(folders)
    distilled = [folder for folder in found if is_distillation(folder)]
    groups, notes = collect([folder for folder in found if folder not in distilled], options.until)
    if options.baseline is not None and groups and not any(is_baseline(one, options.baseline) for one in groups):
        lines = list(dict.fromkeys(one.line for one in groups))
        rule = f"must be a strategy of the runs, or one of {', '.join(map(repr, lines))}"
        raise ConfigError(f"--baseline {rule}; got {options.baseline!r}{nearest(options.baseline, lines)}")
    options = replace(options, baseline=options.baseline or "fedavg")
    target = output or Path(os.path.commonpath([folder.absolute().parent for folder in found])) / "report"
    rule = "must not be the folder of a run, whose files a report would overwrite"
    require(not any((target / name).exists() for name in RUN_FILES), "--output", rule, str(target))
    try:
        distillations, more = part(distilled, target)
        for note in [*notes, *more]:
            print(f"excluded: {note}", file=sys.stderr)
        if not groups and distillations is None:
            raise RunFolderError("no finished run is left to report; finish one, or give another folder")
        report(groups, distillations, [tuple(note.split(": ", 1)) for note in [*notes, *more]], made(target), options)
    except BrokenPipeError:  # the reader of a pipe has closed it
        raise
    except OSError as error:
        raise ConfigError(f"--output must be a folder that can be written, got {str(target)!r} ({error}); choose another") from error
    return target


def report(groups: Sequence[Group], distillations: ReportSection | None, left_out: Sequence[Note], output: Path, options: Options) -> None:
    """Write all files, print the tables and the paths."""
    parts, csvs, missing = ([], {}, []) if not groups else federated(groups, output, options)
    parts += [] if distillations is None else [distillations]
    forget(output)
    for name, frame in csvs.items():
        frame.to_csv(output / f"{name}.csv", index=False)
    paths = [output / f"{name}.csv" for name in csvs]
    omitted = excluded_runs(left_out)
    for part in parts:
        paths += part.write(output, omitted if part is parts[0] else [])
    figures = [drawing for part in parts for drawing in part.drawings] if options.figures else []
    selection.write(figures)
    if not options.figures:
        parts = [replace(part, drawings=[]) for part in parts]
    print("\n".join(map(str, parts)))
    paths += [path for drawing in figures for path in drawing.paths]
    paths.append(html.write(parts, omitted, facts(groups, left_out, options), missing, output))
    (output / WRITTEN).write_text("".join(f"{path.name}\n" for path in paths), encoding="utf-8")
    print(*paths, sep="\n")
    print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)


def forget(output: Path) -> None:
    """Remove what an earlier report has written there."""
    if (output / WRITTEN).is_file():
        for name in (output / WRITTEN).read_text(encoding="utf-8").splitlines():
            (output / Path(name).name).unlink(missing_ok=True)


def federated(groups: Sequence[Group], output: Path, options: Options) -> tuple[list[ReportSection], dict[str, pd.DataFrame], list[str]]:
    """Of federated runs: the part of the report, the numbers behind it by the name of their file, and notes on what cannot be drawn."""
    csvs = {"results": results(groups, options.target, options.kind), "curves": selection.curves_of(groups, options.kind)}
    planned, missing = selection.planned(groups, output, options.baseline, options.target, options.kind) if options.figures else ([], [])
    missing += unpaired(groups, options.baseline)
    if options.figures:
        settings = gather(groups, lambda one: one.runs[0].part(SETTING))
        more, generated, said = generator.planned(settings, federated_tables.ordered_lines(groups), output, options.kind)
        csvs |= {} if generated is None else {"generator": generated}
        planned, missing = [*planned, *more], [*missing, *said]
    found = tables(groups, options.baseline, options.target, options.kind)
    return [ReportSection("Federated runs", "results", found, planned)], csvs, missing


def facts(groups: Sequence[Group], left_out: Sequence[Note], options: Options) -> dict[str, str]:
    """What the page says first."""
    said = {"Federated runs": f"{len({run.folder for one in groups for run in one.runs})} in {len(groups)} rows"} if groups else {}
    said |= {"Left out": str(len(left_out)), "Intervals": f"95 %, {INTERVALS[options.kind]}"}
    said |= {"Compared with": options.baseline} if groups else {}
    said |= {} if options.target is None else {"Target": f"{100 * options.target:g} %"}
    return said | ({} if options.until is None else {"Until round": str(options.until)})
