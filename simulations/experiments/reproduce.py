"""``fedkd reproduce``: run what is missing of an experiment, and print its table beside the published one.

The files are ``table.md``, ``table.csv``, ``table.tex``, and ``runs.csv`` with one row per run, in
``<output>/<name>/reproduce/<experiment>/``. An interrupted reproduction resumes when the same command is given again.
"""

import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from fedkd.errors import ConfigError, require
from simulations.config import apply_tuned_params, compose
from simulations.experiments import published_table, tuning
from simulations.experiments.definition import Experiment
from simulations.experiments.grid import read_data_once, with_engine_for
from simulations.experiments.launch import PREFIXES, check_jobs, launch, launcher_words
from simulations.experiments.plan import PlannedRun, count_states, has_diverged, plan, read_experiment, refresh, runs_folder, unfinished
from simulations.experiments.sweep import ready, sweep
from simulations.overrides import nearest
from simulations.process import cores
from simulations.progress import ProgressTable, configure_logging
from simulations.reports.curves import EMPTY, curve
from simulations.reports.figures import convergence
from simulations.reports.figures.forest_plot import forest
from simulations.reports.figures.label_distribution import label_distribution
from simulations.reports.figures.style import figure_paths
from simulations.reports.groups import Group, file_slugs
from simulations.reports.metrics import CURVES
from simulations.reports.run_description import code_notes
from simulations.run_folder.csv_rows import append
from simulations.run_folder.environment import current_commit, read_commit, write_tuned_params
from simulations.run_folder.reader import FederatedRun, read_run

KEYS = ("experiment", "seeds", "settings", "strategies", "jobs", "quiet", "only")

PLACES = ("output=", "engine", "progress=", "checkpoint_every=", *PREFIXES)
"""Beginnings of overrides that do not change a result."""

DATA_PLACE = re.compile(r"data\.([\w.]+\.)?(root|cache|download)=")
"""Overrides of the places of data sets, also of the parts of one, which do not change a result either."""


@dataclass(frozen=True)
class Reproduction:
    """A request to reproduce an experiment: which of its runs, and how. See :func:`plan_reproduction`."""

    name: str
    experiment: Experiment
    seeds: list[int]
    jobs: int
    quiet: bool
    only: str | None
    overrides: list[str]

    @cached_property
    def home(self) -> Path:
        """The folder of the run folders: ``<output>/<name>``."""
        return runs_folder(compose([f"experiment={self.name}", *self.overrides]))

    @property
    def results(self) -> Path:
        """The folder of the table and the figures."""
        return self.home / "reproduce" / self.name

    def plan(self) -> tuple[list[PlannedRun], list[str]]:
        """All runs with their present states, and notes."""
        return plan(self.name, self.experiment, self.overrides, self.seeds)


def plan_reproduction(
    name: str,
    overrides: Sequence[str] = (),
    *,
    seeds: Sequence[int] | None = None,
    settings: Sequence[str] | None = None,
    strategies: Sequence[str] | None = None,
    jobs: int | None = None,
    quiet: bool = False,
    only: str | None = None,
) -> Reproduction:
    """Which runs of an experiment are made, and how.

    Args:
        name: of the experiment, a yaml in conf/experiment/ or in the user's folder that describes a sweep.
        overrides: words ``KEY=VALUE`` for every run; ``searchpath=`` among them.
        seeds: None for the experiment's own.
        settings: names of its settings; None for all.
        strategies: names of its strategies; None for all.
        jobs: >= 1, runs at a time; None for one per core. A serial experiment always takes one.
        quiet: print one line per run, when it ends.
        only: ``plan`` shows which runs are finished, ``table`` prints the table of these; nothing is run. None runs what is missing.

    Raises:
        ConfigError: naming the argument, the rule and the value.
    """
    experiment = read_experiment(name, overrides)
    require(all(word.partition("=")[0] != "seed" for word in overrides), "seeds", "must be given in place of seed", "seed=")
    rows, columns = chosen("settings", experiment.settings, settings), chosen("strategies", experiment.strategies, strategies)
    base, baseline = experiment.ratio_to, experiment.baseline
    require(base in (None, *columns), "strategies", f"must have {base} among them, to which all metrics are ratios", list(columns))
    experiment = replace(experiment, settings=rows, strategies=columns)
    require(bool(experiment.cells()), "strategies", "must be run in one of the settings at least", list(columns))
    lacks = baseline is not None and baseline not in columns
    if lacks:
        experiment = replace(experiment, baseline=None, figures=[one for one in experiment.figures if one != "differences"])
    require(only in (None, "plan", "table"), "only", "must be plan or table", only)
    require(jobs is None or jobs >= 1, "jobs", "must be >= 1", jobs)
    launcher = launcher_words(overrides)
    check_jobs(jobs, launcher)
    rule = "must not be given for an experiment that compares times, whose runs are made one after the other here"
    require(not launcher or not experiment.serial, "hydra/launcher", rule, " ".join(launcher))
    odd = [word for word in overrides if not (word.startswith(PLACES) or DATA_PLACE.match(word))]
    notes = [experiment.note, f"NOT as the experiment has it: {' '.join(odd)}." if odd else ""]
    notes.append(f"{baseline}, from which differences are, is not among the strategies." if lacks else "")
    experiment = replace(experiment, note=" ".join(filter(None, notes)))
    number = 1 if experiment.serial else jobs or cores()
    return Reproduction(name, experiment, list(experiment.seeds if seeds is None else seeds), number, quiet, only, list(overrides))


def parse_arguments(argv: Sequence[str]) -> Reproduction:
    """The words of ``python -m simulations.reproduce``: ``experiment=``, ``seeds=0,1`` and the like, and overrides.

    Raises:
        ConfigError: a word cannot be understood.
    """
    pairs = [word.partition("=") for word in argv]
    given = {name: value for name, _, value in pairs if name in KEYS}
    require("experiment" in given, "experiment", "must be named: experiment=fedgen_table1_mnist", None)
    quiet = given.get("quiet", "false")
    require(quiet in ("true", "false"), "quiet", "must be true or false", quiet)
    return plan_reproduction(
        given["experiment"],
        [word for word, (name, _, _) in zip(argv, pairs) if name not in KEYS],
        seeds=[number(seed, "seeds") for seed in given["seeds"].split(",")] if "seeds" in given else None,
        settings=given["settings"].split(",") if "settings" in given else None,
        strategies=given["strategies"].split(",") if "strategies" in given else None,
        jobs=number(given["jobs"], "jobs") if "jobs" in given else None,
        quiet=quiet == "true",
        only=given.get("only"),
    )


def number(text: str, name: str) -> int:
    """A whole number."""
    require(text.strip().isdigit(), name, "must be whole numbers", text)
    return int(text)


def chosen(part: str, known: dict[str, list[str]], names: Sequence[str] | None) -> dict[str, list[str]]:
    """The settings or strategies of these names, in the experiment's order; all where ``names`` is None.

    Raises:
        ConfigError: there is none of a name; the message names the nearest.
    """
    if names is None:
        return known
    asked = [name.strip() for name in names]
    wrong = [name for name in asked if name not in known]
    if wrong:
        raise ConfigError(f"{part} must be of {', '.join(known)}, got {', '.join(asked)!r}{nearest(wrong[0], known)}")
    return {name: value for name, value in known.items() if name in asked}


LOGS = Path("reproduce", "log")
"""Folder of the logs, below the folder of the runs."""

TIMES = "times.csv"
"""File with the wall time of each sweep."""


def reproduce(asked: Reproduction) -> int:
    """Run what is missing, and print the table.

    Returns:
        The exit code: 0 where nothing is left to do, 3 where ``only`` is ``plan`` and runs are missing, otherwise 1.
    """
    failed: dict[str, str] = {}
    if asked.only is None:
        if not launcher_words(asked.overrides):
            ready()
        with alone(asked.home):
            failed = tuning.tune_experiment(asked.name, asked.experiment, asked.overrides, lambda runs: run_all(asked, runs))
            runs, notes = asked.plan()
            failed |= run_all(asked, runs)
            runs = refresh(runs)
            write_all_tuned_params(runs)
    else:
        tuning.missing_searches(asked.name, asked.experiment, asked.overrides)  # refuses tables of another search
        runs, notes = asked.plan()
    if asked.only == "plan":
        print(*(f"{run.state:>11}  {run.folder or '-'}  {run.label}" for run in runs), sep="\n")
    print(count_states(runs), flush=True)
    if asked.only != "plan":
        notes += print_table(asked, runs)
    notes += [f"failed: {label}: {why}" for label, why in failed.items()]
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    missing = any(run.state != "finished" for run in runs)
    if asked.only == "plan" and missing:
        return 3
    return 1 if notes or missing else 0


def run_all(asked: Reproduction, runs: Sequence[PlannedRun]) -> dict[str, str]:
    """Run those of ``runs`` that are not finished. Returns the reasons of runs that failed, by label."""
    left = unfinished(runs)
    print(count_states(runs), flush=True)
    if not left:
        return {}
    configure_logging()
    read_data_once([run.config for run in left])
    if launcher := launcher_words(asked.overrides):
        return launch(left, launcher)
    began = time.monotonic()
    failed = sweep(
        [replace(run, config=with_engine_for(run.config, asked.jobs)) for run in left],
        asked.jobs,
        asked.home / LOGS,
        ProgressTable(quiet=asked.quiet),
    )
    took = time.monotonic() - began
    asked.results.mkdir(parents=True, exist_ok=True)
    append(
        asked.results / TIMES,
        ("runs", "jobs", "seconds"),
        [{"runs": len(left) - len(failed), "jobs": asked.jobs, "seconds": round(took, 1)}],
    )
    print(f"{len(left) - len(failed)} runs done in {timedelta(seconds=round(took))}, {asked.jobs} at a time", flush=True)
    return failed


def write_all_tuned_params(runs: Sequence[PlannedRun]) -> None:
    """Write ``tuned.json`` into finished runs whose own value was selected after they had been made."""
    for run in runs:
        if run.state != "finished" or run.folder is None or (run.folder / "tuned.json").is_file():
            continue
        if (choice := apply_tuned_params(deepcopy(run.config), "strategy")) is not None:
            write_tuned_params(run.folder, choice)


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that one sweep at a time runs in it.

    Raises:
        ConfigError: another sweep is running.
    """
    (home / "reproduce").mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / "reproduce" / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"output must be a folder in which no other sweep of this experiment is running, got {str(home)!r}") from None
    try:
        yield
    finally:
        lock.release()


def print_table(asked: Reproduction, runs: Sequence[PlannedRun]) -> list[str]:
    """Print and write the table of the finished runs. Returns a note on each run that is not in it."""
    found: dict[tuple[str, str], dict[int, FederatedRun]] = {}
    folders: dict[Path, FederatedRun] = {}
    notes = []
    for run in runs:
        try:
            require(run.state == "finished", run.label, "must be finished to be in the table", run.state)
            assert run.folder is not None, "a finished run has a folder"
            if run.folder not in folders:
                folders[run.folder] = read_run(run.folder)
            found.setdefault((run.setting, run.strategy), {})[run.seed] = folders[run.folder]
        except ValueError as error:
            notes.append(str(error))
    lines = [*diverged(runs), *wall(asked.results / TIMES), *commits(folders.values())]
    text, paths = published_table.write(asked.experiment, found, asked.results, lines)
    if asked.experiment.figures:
        paths += draw(asked, found)
    print(text, *paths, sep="\n", flush=True)
    return notes


def diverged(runs: Sequence[PlannedRun]) -> list[str]:
    """A line on runs that are in no mean because their training diverged, according to their folders."""
    labels = [run.label for run in runs if has_diverged(run)]
    return [f"Diverged, hence in none of the means: {'; '.join(labels)}."] if labels else []


def wall(path: Path) -> list[str]:
    """A line on the wall time of the sweeps, without interrupted ones."""
    if not path.is_file():
        return []
    times = pd.read_csv(path)
    at_once = " and ".join(map(str, sorted(times["jobs"].unique())))
    return [f"By the clock {times['seconds'].sum() / 60:.1f} minutes for {times['runs'].sum()} runs, {at_once} at a time."]


def commits(runs: Iterable[FederatedRun]) -> list[str]:
    """A line if the runs were made at several commits, or at another commit than the present one."""
    known = {commit for run in runs if (commit := read_commit(run.folder)) is not None}
    now = current_commit()[0]
    said = [f"{note[0].upper()}{note[1:]}." for note in code_notes(list(runs))]
    if not known or known == {now}:
        return said
    return [f"Made by the code at {', '.join(sorted(known))}" + (f"; it is now at {now}." if now else "."), *said]


def draw(asked: Reproduction, found: published_table.CellRuns) -> list[Path]:
    """The figures of the experiment, for every setting with finished runs."""
    paths: list[Path] = []
    experiment = asked.experiment
    table = published_table.compare(experiment, found)
    for row in experiment.settings:
        there = {column: tuple(found[row, column].values()) for column in experiment.strategies if (row, column) in found}
        stem = asked.results / file_slugs([row])[0]
        if there and "convergence" in experiment.figures:
            lines = {column: dict.fromkeys(CURVES, EMPTY) for column in experiment.strategies}  # a strategy has one style in all settings
            for column, seeds in there.items():
                lines[column] = {panel: curve(Group(seeds, column, column, row), panel, "rounds") for panel in CURVES}
            convergence.convergence(lines, f"{stem}_convergence")
            paths += figure_paths(f"{stem}_convergence")
        if there and "labels" in experiment.figures:
            label_distribution(next(iter(there.values()))[0].counts(), f"{stem}_labels")
            paths += figure_paths(f"{stem}_labels")
        if there and "differences" in experiment.figures and experiment.baseline is not None:
            mine = table[table["setting"] == row]
            forest(mine, experiment.shown[0], experiment.baseline, f"{stem}_differences")
            paths += figure_paths(f"{stem}_differences")
    return paths
