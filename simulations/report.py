"""``python -m simulations.report <folders>``: from run folders, figures and tables. It reads files only, and never trains.

Headlines are the last round and the mean of the last ten evaluated rounds, never the best round: that would select on the test set.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from simulations import clients, details, distill_pages, drawings, generator_figures, headlines
from simulations.comparisons import comparisons, unpaired
from simulations.drawings import Drawing
from simulations.groups import Group, comparable, gather, group
from simulations.latex import latex
from simulations.runs import SETTING, find, is_distillation, read
from simulations.statistics import INTERVALS
from simulations.summaries import is_baseline, results
from simulations.tables import Table, frame, markdown, texts

Note = tuple[str, str]
"""What was left out, and why."""


@dataclass(frozen=True)
class Report:
    """All that a report shows: tables, figures (drawn), what was left out, and the numbers behind headlines and curves."""

    tables: list[Table]
    drawings: list[Drawing]
    left_out: list[Note]
    results: pd.DataFrame
    curves: pd.DataFrame


def collect(folders: Sequence[Path], until: int | None = None) -> tuple[list[Group], list[str]]:
    """The groups of comparable runs among ``folders``, and a note on each run left out.

    With ``until``, every run counts as if it had ended after that round; runs that are shorter are left out.
    """
    runs, notes = [], []
    for folder in folders:
        try:
            runs.append(read(folder, until))
        except ValueError as error:
            notes.append(f"{folder}: {error}")
    kept, unlike = comparable(runs)
    return group(kept), notes + unlike


def tables(groups: Sequence[Group], baseline: str = "fedavg", target: float | None = None, kind: str = "t") -> list[Table]:
    """All tables that these groups give."""
    found = [
        headlines.headlines(groups, kind),
        headlines.way(groups, target, kind),
        headlines.differences(groups, baseline, kind),
        comparisons(groups, baseline, kind),
        *headlines.by_setting(groups, kind),
        details.server_side(groups, kind),
        clients.clients(groups, kind),
        clients.by_network(groups, kind),
        clients.classes(groups, kind),
        details.skew(groups, kind),
        details.phases(groups, kind),
    ]
    return [table for table in found if table is not None]


def made(folder: Path) -> Path:
    """The folder, which is there now."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 2 where there is nothing to report or the output cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m simulations.report", description="Figures and tables from the folders of runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or parents of them")
    parser.add_argument("--output", type=Path, help="default: the folder 'report' beside the runs")
    parser.add_argument("--until", type=int, metavar="ROUND", help="report the runs as they stood after this round")
    parser.add_argument("--target", type=float, metavar="ACCURACY", help="and when they first reach this accuracy, in 0..1")
    parser.add_argument(
        "--interval", choices=INTERVALS, default="t", help="95 %% interval over seeds: Student's t (default) or BCa bootstrap"
    )
    parser.add_argument("--baseline", metavar="STRATEGY", help="compared with all others: a strategy, or a row of the table (fedavg)")
    parser.add_argument("--no-figures", dest="figures", action="store_false", help="tables alone")
    arguments = parser.parse_args(argv)
    if arguments.target is not None and not 0 < arguments.target <= 1:
        return _fail(f"--target must be an accuracy in 0..1 (0.9 is 90 %), got {arguments.target:g}")
    try:
        found = find(arguments.folders)
    except ValueError as error:
        return _fail(str(error))
    distilled = [folder for folder in found if is_distillation(folder)]
    groups, notes = collect([folder for folder in found if folder not in distilled], arguments.until)
    if arguments.baseline is not None and groups and not any(is_baseline(one, arguments.baseline) for one in groups):
        lines = ", ".join(dict.fromkeys(repr(one.line) for one in groups))
        return _fail(f"--baseline must be a strategy of the runs, or one of {lines}; got {arguments.baseline!r}")
    output = arguments.output or Path(os.path.commonpath([folder.absolute().parent for folder in found])) / "report"
    try:
        text, paths, more = distill_pages.write(distilled, made(output)) if distilled else ("", [], [])
        for note in [*notes, *more]:
            print(f"left out: {note}", file=sys.stderr)
        if not groups and not text:
            return _fail("no finished run is left to report; finish one, or give another folder")
        if text:
            print(text, *paths, sep="\n")
        if groups:
            report(groups, notes, made(output), arguments.baseline or "fedavg", arguments.target, arguments.interval, arguments.figures)
        return 0
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"--output must be a folder that can be written, got {str(output)!r} ({error}); choose another")


def report(
    groups: Sequence[Group], notes: Sequence[str], output: Path, baseline: str, target: float | None, kind: str, figures: bool = True
) -> Report:
    """Write all files, print the tables and the paths."""
    planned, missing = drawings.planned(groups, output, baseline, target, kind) if figures else ([], [])
    missing += unpaired(groups, baseline)
    left_out = [tuple(note.split(": ", 1)) for note in notes]
    done = Report(
        tables(groups, baseline, target, kind), planned, left_out, results(groups, target, kind), drawings.curves_of(groups, kind)
    )
    paths = _write_tables(done, output)
    drawings.write(done.drawings)
    if figures:
        more, said = generator_figures.draw(gather(groups, lambda one: one.runs[0].part(SETTING)), headlines.ordered_lines(groups), output)
        paths, missing = [*paths, *more], [*missing, *said]
    print("\n".join(markdown(table, marks=False) for table in done.tables))
    print(*paths, *(path for drawing in done.drawings for path in drawing.paths), sep="\n")
    print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
    return done


def _write_tables(done: Report, output: Path) -> list[Path]:
    """The tables as one Markdown file, and each as CSV and LaTeX; the numbers behind headlines and curves."""
    left_out = Table(
        "left_out", "Left out", tuple(texts(title, column) for title, column in zip(("run", "why"), zip(*done.left_out, strict=True)))
    )
    shown = [*done.tables, *([left_out] if done.left_out else [])]
    for name in ("differences", "comparisons", "times", "left_out"):  # of an earlier report
        for suffix in (".csv", ".tex"):
            (output / f"{name}{suffix}").unlink(missing_ok=True)
    (output / "results.md").write_text("\n".join(map(markdown, shown)), encoding="utf-8")
    done.results.to_csv(output / "results.csv", index=False)
    done.curves.to_csv(output / "curves.csv", index=False)
    paths = [output / "results.csv", output / "results.md", output / "curves.csv"]
    for table in shown:
        paths += [output / f"{table.name}.csv", output / f"{table.name}.tex"]
        frame(table).to_csv(paths[-2], index=False)
        paths[-1].write_text(latex(table), encoding="utf-8")
    return paths


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
