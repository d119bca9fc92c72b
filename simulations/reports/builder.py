"""A report: tables and figures from run folders. Building one reads files only and never trains.

Headline metrics are the final round and the mean of the last ten evaluated rounds. The best round is never used, because choosing it would
select on the test set.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedkd.errors import ConfigError, ReportError, RunFolderError, require
from simulations.overrides import nearest
from simulations.reports import html
from simulations.reports.arrangement import arrange, names_of
from simulations.reports.attempts import Attempts
from simulations.reports.curves import curve_table
from simulations.reports.distillation_groups import read_diverged_distillations
from simulations.reports.distillation_section import distillation_names, distillation_section, divide, read_distillations
from simulations.reports.figures import generator, selection
from simulations.reports.figures.drawing import write_all
from simulations.reports.figures.style import FigureStyle
from simulations.reports.groups import Group, comparable, gather, group
from simulations.reports.options import ReportOptions
from simulations.reports.run_description import code_notes, describe_federated
from simulations.reports.section import Note, ReportSection, excluded_runs
from simulations.reports.statistics import INTERVALS
from simulations.reports.summary import results
from simulations.reports.tables import clients, drift, federated
from simulations.reports.tables.predictions import client_tests
from simulations.reports.tables.table import RANGE_AT_TWO, NumberFormat, Table
from simulations.run_folder.metric_names import STRATEGY_NAMES
from simulations.run_folder.reader import DIVERGED, RUN_FILES, SETTING, find_run_folders, is_distillation, read_diverged, read_run

WRITTEN = "written.txt"
"""The file with the names of all files of a report, which the next report in the same folder removes."""


def report_folders(folders: Sequence[Path], options: ReportOptions | None = None, output: Path | None = None, quiet: bool = False) -> Path:
    """Write the report of the runs in ``folders``.

    The tables and the path of the page go to standard output, notes on excluded runs and missing figures to standard error.

    Args:
        folders: run folders, or parents of run folders.
        options: how the runs are reported; None for the defaults.
        output: the folder of the report; None for ``report`` beside the runs.
        quiet: nothing is printed.

    Returns:
        The folder of the report.

    Raises:
        RunFolderError: a folder does not exist, or no finished run is in ``folders``.
        ConfigError: an option is wrong, or ``output`` cannot be written.
        ReportError: a table or a figure failed. All others are written; with ``HYDRA_FULL_ERROR=1`` the command shows the traceback.
    """
    options = ReportOptions() if options is None else options
    found = find_run_folders(folders)
    parent = Path(os.path.commonpath([folder.absolute().parent for folder in found]))
    target = output or parent / "report"
    rule = "must not be the folder of a run, whose files a report would overwrite"
    require(not any((target / name).exists() for name in RUN_FILES), "output", rule, str(target))
    attempts = Attempts(go_on=True)
    sections, excluded, _ = build_sections(found, target, options, attempts)
    for folder, reason in [] if quiet else excluded:
        print(f"excluded: {folder}: {reason}", file=sys.stderr)
    if not sections:
        raise RunFolderError("no finished run is left to report; finish one, or give another folder")
    earlier = earlier_files(target)
    try:
        facts = _facts(excluded, len(found), options)
        paths = write_report(sections, excluded, attempts, target, options, parent.name, facts)
    except OSError as error:
        raise ConfigError(f"output must be a folder that can be written, got {str(target)!r} ({error}); choose another") from error
    if not quiet:
        print("\n".join(map(str, sections)))
        print(f"{len(paths)} files in {target}", f"report: {target / html.NAME}", sep="\n")
        if gone := [path.name for path in earlier if path not in paths]:
            print(f"removed, of the earlier report in this folder: {', '.join(gone)}; output=FOLDER keeps both", file=sys.stderr)
        print(*attempts.missing, sep="\n", end="\n" if attempts.missing else "", file=sys.stderr)
    if attempts.failed:
        failures = attempts.notes[len(attempts.missing) :]
        raise ReportError(f"the report lacks {'; '.join(failures)}; all else is in {target}") from next(iter(attempts.failed.values()))
    return target


def build_sections(
    folders: Sequence[Path], output: Path, options: ReportOptions, attempts: Attempts | None = None
) -> tuple[list[ReportSection], list[Note], list[str]]:
    """The sections of a report, before a file is written.

    Args:
        folders: of runs.
        output: the folder of the report.
        options: of the report.
        attempts: gains what is missing or fails; None raises the exception of a part that fails.

    Returns:
        The sections, a note on each excluded run, and notes on runs of unlike code and on figures and comparisons that are missing.

    Raises:
        ConfigError: an option names a strategy, a setting or a baseline that no run has.
    """
    distilled = [folder for folder in folders if is_distillation(folder)]
    groups, notes = collect([folder for folder in folders if folder not in distilled], options.until)
    distillations, more = read_distillations(distilled)
    federated_names = [*names_of(groups), *(one.setting for one in groups)]
    for_runs, for_distillations = divide(options, federated_names, distillation_names(distillations))
    attempts = Attempts() if attempts is None else attempts
    attempts.missing += code_notes([run for one in groups for run in one.runs]) + code_notes(distillations)
    sections = []
    if any(one.runs for one in groups):
        sections.append(federated_section(groups, output, for_runs, attempts))
    if distillations:
        lost = read_diverged_distillations(distilled)
        sections.append(distillation_section(distillations, output, for_distillations, attempts, lost))
    excluded = [(folder, reason) for folder, _, reason in (note.partition(": ") for note in [*notes, *more])]
    return sections, excluded, attempts.missing


def collect(folders: Sequence[Path], until: int | None = None) -> tuple[list[Group], list[str]]:
    """The groups of comparable runs among ``folders``, and a note on each excluded run. Those that diverged are counted in their groups.

    Args:
        folders: of federated runs.
        until: every run counts as if it had ended after this round; shorter runs are excluded.
    """
    runs, diverged, notes = [], [], []
    for folder in folders:
        try:
            runs.append(read_run(folder, until))
        except ValueError as error:
            notes.append(f"{folder}: {error}")
            diverged.append(read_diverged(folder, until))
    kept, excluded = comparable(runs)
    return group(kept, [run for run in diverged if run is not None]), notes + excluded


def federated_section(groups: Sequence[Group], output: Path, options: ReportOptions, attempts: Attempts) -> ReportSection:
    """The section of federated runs. ``attempts`` gains what is missing or fails.

    Raises:
        ConfigError: an option names a strategy, a setting or a baseline that no run has.
    """
    options = replace(options, baseline=baseline_of(groups, options))
    rows = arrange(groups, options)
    groups = [one for one in rows if one.runs]
    baseline = options.baseline or ""
    columns = list(selection.axis_labels(options))
    numbers = {
        "results": attempts.make("table results", results, rows, options.target, options.kind),
        "curves": attempts.make("table curves", curve_table, groups, columns, options.kind, options.smoothing),
    }
    drawings = []
    attempts.missing += federated.unpaired(groups, baseline)
    if options.figures:
        style = selection.style_of(rows, options)
        drawings = selection.planned(rows, output, options, style, attempts)
        settings = gather(sorted(groups, key=lambda one: one.place), lambda one: one.runs[0].part(SETTING))
        found = attempts.make("figures of generators", generator.planned, settings, output, style)
        more, numbers["generator"], unreadable = found or ([], None, [])
        drawings += more
        attempts.missing += unreadable
    runs = list({run.folder: run for one in groups for run in one.runs}.values())
    facts = {"Federated runs": f"{len(runs)} in {len(groups)} rows", **describe_federated(runs), "Baseline": _printed(groups, baseline)}
    facts |= {"A client is tested with": how} if (how := client_tests(rows)) else {}
    facts |= {} if options.target is None else {"Target": f"{round(100 * options.target, 6):g} %"}
    facts |= {} if options.until is None else {"Until round": str(options.until)}
    written = {name: table for name, table in numbers.items() if table is not None}
    return ReportSection("Federated runs", "results", facts, tables(rows, options, attempts), drawings, written)


def baseline_of(groups: Sequence[Group], options: ReportOptions) -> str:
    """The baseline as it is printed: the chosen strategy or line, or FedAvg.

    Raises:
        ConfigError: no run is of the chosen baseline.
    """
    if options.baseline is None:
        return "fedavg"
    if not any(one.is_called(options.baseline) for one in groups):
        lines = list(dict.fromkeys(one.line for one in groups))
        rule = f"must be a strategy of the runs, or one of {', '.join(map(repr, lines))}"
        raise ConfigError(f"baseline {rule}; got {options.baseline!r}{nearest(options.baseline, [*names_of(groups), *lines])}")
    return options.baseline


def _printed(groups: Sequence[Group], baseline: str) -> str:
    """The baseline under its printed name, with a remark where no run is of it. Its variants are compared with it, and are not named."""
    called = [one for one in groups if one.is_called(baseline)]
    found = list(dict.fromkeys(one.line for one in called if one.is_plain)) or list(dict.fromkeys(one.line for one in called))
    remedy = "no runs; --baseline NAME takes another"
    return "; ".join(found) or f"{STRATEGY_NAMES.get(baseline, baseline)} ({remedy})"


def tables(groups: Sequence[Group], options: ReportOptions, attempts: Attempts) -> list[Table]:
    """All tables of these groups that can be made. A group of which all runs diverged has a row where no other number is needed."""
    rows, groups = groups, [one for one in groups if one.runs]
    form, metrics, baseline = NumberFormat(options.kind, options.decimals), options.metrics, options.baseline or "fedavg"
    make = attempts.make
    found = [
        make("table headlines", federated.headlines, rows, form),
        make("table tasks", drift.tasks_table, groups, form),
        make("table drift", drift.drift_table, groups, form),
        make("table times", federated.cost_to_target, groups, options.target, form),
        make("table differences", federated.differences, groups, baseline, form),
        make("table comparisons", federated.comparisons, groups, baseline, metrics, form),
    ]
    if options.panels == "settings":
        found.append(make("table by_setting", federated.settings_by_strategies, rows, metrics, form))
    else:
        found += make("table by_setting", federated.by_setting, rows, metrics, form) or []
    for name, function in clients.TABLES.items():
        found.append(make(f"table {name}", function, groups, form))
    return [table for table in found if table is not None]


def write_report(
    sections: Sequence[ReportSection],
    excluded: Sequence[Note],
    attempts: Attempts,
    output: Path,
    options: ReportOptions,
    title: str,
    facts: Mapping[str, str],
) -> list[Path]:
    """Write all files of a report, after those of an earlier one are removed. Returns the paths."""
    output.mkdir(parents=True, exist_ok=True)
    remove_earlier(output)
    sections = [_with_png(section) if options.figures else replace(section, drawings=[]) for section in sections]
    omitted, paths = excluded_runs(excluded), []
    for section in sections:
        paths += section.write(output, attempts, omitted if section is sections[0] else [])
    drawn = write_all([drawing for section in sections for drawing in section.drawings], attempts)
    paths += [path for drawing in drawn for path in drawing.paths]
    stems = {one.stem for one in drawn}
    sections = [replace(section, drawings=[one for one in section.drawings if one.stem in stems]) for section in sections]
    paths.append(html.write(sections, omitted, facts, attempts.notes, output, title))
    if "png" not in options.formats:  # the page holds the images
        for path in [path for path in paths if path.suffix == ".png"]:
            path.unlink()
        paths = [path for path in paths if path.suffix != ".png"]
    (output / WRITTEN).write_text("".join(f"{path.name}\n" for path in paths), encoding="utf-8")
    return paths


def _with_png(section: ReportSection) -> ReportSection:
    """The section with figures that are written as PNG too, which the page needs."""

    def more(style: FigureStyle) -> FigureStyle:
        return style if "png" in style.formats else replace(style, formats=(*style.formats, "png"))

    return replace(section, drawings=[replace(one, style=more(one.style)) for one in section.drawings])


def remove_earlier(output: Path) -> None:
    """Remove the files of an earlier report in this folder; other files stay."""
    for path in earlier_files(output):
        path.unlink(missing_ok=True)


def earlier_files(output: Path) -> list[Path]:
    """The files of an earlier report in this folder."""
    if not (output / WRITTEN).is_file():
        return []
    return [output / Path(name).name for name in (output / WRITTEN).read_text(encoding="utf-8").splitlines()]


def _facts(excluded: Sequence[Note], num_runs: int, options: ReportOptions) -> Mapping[str, str]:
    """Facts on the report itself. ``num_runs`` counts all runs that were found."""
    how = "standard deviation over seeds" if options.kind == "std" else f"95 %, {INTERVALS[options.kind]}{RANGE_AT_TWO}"
    number = sum(reason.startswith(DIVERGED) for _, reason in excluded)
    diverged = {"Diverged runs": f"{number} of {num_runs}; lower their learning rate"} if number else {}
    return {"Intervals": how, "Excluded runs": str(len(excluded)), **diverged}
