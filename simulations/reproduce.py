"""``python -m simulations.reproduce experiment=fedgen_table1_mnist data.root=<folder>``: a published table, and ours beside it.

Runs what is missing of the experiment's sweep, several runs at a time where there are cores, and prints the paper's numbers, those of its
public code where they were measured, ours, the difference, and whether theirs lie in our interval; the same as ``table.md``,
``table.csv`` and ``table.tex``, beside ``runs.csv`` with a row a run, in ``<output>/<name>/reproduce/<experiment>/``. Started again after
whatever end it goes on.
``seeds=0,1,2`` and ``rows=<names>`` and ``columns=<names>`` choose of the sweep; ``jobs=<number>`` are the runs at a time; ``quiet=true``
shows progress as plain lines; ``only=plan`` shows what is there and what is not, ``only=table`` the table of what is there. Everything
else overrides the configuration of every run. The exit code is 0 where nothing is left to be done.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from omegaconf import DictConfig

from fedkd.check import require
from fedkd.config import build, make
from simulations import figures, published, search
from simulations.asked import Asked, parse
from simulations.command import compose, explained, make_absolute, take_tuned
from simulations.curves import NOTHING, PANELS, curve
from simulations.experiment import Planned, counted, refreshed, unfinished
from simulations.forest import forest
from simulations.groups import Group
from simulations.machine import cores
from simulations.progress import Board, narrate
from simulations.record import commit, made_by, note_choice
from simulations.rows import append
from simulations.runs import Run, read
from simulations.sweep import log_of, ready, sweep
from simulations.tune import DIVERGED

LOGS = Path("reproduce", "log")
"""Within the folder of the runs: what each of them has printed."""
TIMES = "times.csv"
"""What each sweep has taken by the clock."""


def reproduce(asked: Asked) -> int:
    """Run what is missing, and print the table. Returns the exit code."""
    failed: dict[str, str] = {}
    if asked.only is None:
        ready()
        with alone(asked.home):
            failed = search.tune(asked.name, asked.experiment, asked.overrides, lambda runs: run_all(asked, runs))
            runs, notes = asked.plan()
            failed |= run_all(asked, runs)
            runs = refreshed(runs)
            note_choices(runs)
    else:
        search.left(asked.name, asked.experiment, asked.overrides)  # refuses choices of another search
        runs, notes = asked.plan()
    if asked.only == "plan":
        print(*(f"{run.state:>11}  {run.folder or '-'}  {run.label}" for run in runs), sep="\n")
    print(counted(runs), flush=True)
    if asked.only != "plan":
        notes += print_table(asked, runs)
    notes += [f"failed: {label}: {why}" for label, why in failed.items()]
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    left = notes or any(run.state != "finished" for run in runs)
    return 1 if left else 0


def run_all(asked: Asked, runs: Sequence[Planned]) -> dict[str, str]:
    """Run what is not finished of ``runs``; why some failed, by label."""
    left = unfinished(runs)
    print(counted(runs), flush=True)
    if not left:
        return {}
    narrate()
    foresee([run.config for run in left])
    began = time.monotonic()
    failed = sweep(
        [replace(run, config=engaged(run.config, asked)) for run in left],
        asked.jobs,
        asked.home / LOGS,
        Board(quiet=asked.quiet),
    )
    took = time.monotonic() - began
    asked.results.mkdir(parents=True, exist_ok=True)
    append(asked.results / TIMES, ("runs", "jobs", "seconds"), [{"runs": len(left) - len(failed), "jobs": asked.jobs, "seconds": round(took, 1)}])
    print(f"{len(left) - len(failed)} runs done in {timedelta(seconds=round(took))}, {asked.jobs} at a time", flush=True)
    return failed


def note_choices(runs: Sequence[Planned]) -> None:
    """Have finished runs say that their value is a choice, where it was that of the configuration and they were there before."""
    for run in (one for one in runs if one.state == "finished" and not (one.folder / "tuned.json").is_file()):
        if (choice := take_tuned(deepcopy(run.config), "strategy")) is not None:
            note_choice(run.folder, choice)


def foresee(configs: Sequence[DictConfig]) -> None:
    """Read every data set that runs ask for once, before many do, and see that partitions that are files are there.

    Raises:
        ValueError: one is not where ``data.root`` or ``partition.path`` says.
    """
    sets = []
    for config in configs:
        make_absolute(config.data)
        path = config.partition.get("path")
        require(
            path is None or Path(path).expanduser().is_file(), "partition.path", "must be an npz file with train_00, test_00, ...", path
        )
        if config.data not in sets:
            sets.append(config.data)
            make("data", build(config, "data"))


def engaged(config: DictConfig, asked: Asked) -> DictConfig:
    """The run with as many actors as there are cores for it, in one process where that is one; an engine that was chosen stays."""
    share = cores() // asked.jobs
    if config.choices.engine == "ray" and config.engine.get("workers") is None and config.engine.get("address") is None:
        if share > 1:
            config.engine.workers = share
        else:
            config.engine, config.choices.engine = compose(["engine=local"]).engine, "local"
    return config


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """One sweep at a time in a folder.

    Raises:
        ValueError: another goes on.
    """
    (home / "reproduce").mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / "reproduce" / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"output must be a folder in which no other sweep of this experiment goes on, got {str(home)!r}") from None
    try:
        yield
    finally:
        lock.release()


def print_table(asked: Asked, runs: Sequence[Planned]) -> list[str]:
    """Print the table of what is finished, write it, and give a note on each run that is not in it."""
    found: dict[tuple[str, str], dict[int, Run]] = {}
    folders: dict[Path, Run] = {}
    notes = []
    for run in runs:
        try:
            require(run.state == "finished", run.label, "must be finished to be in the table", run.state)
            if run.folder not in folders:
                folders[run.folder] = read(run.folder)
            found.setdefault((run.row, run.column), {})[run.seed] = folders[run.folder]
        except ValueError as error:
            notes.append(str(error))
    said = [*diverged(runs, asked.home / LOGS), *wall(asked.results / TIMES), *commits(folders.values())]
    text, paths = published.write(asked.experiment, found, asked.results, said)
    if asked.experiment.drawn:
        paths += draw(asked, found)
    print(text, *paths, sep="\n", flush=True)
    return notes


def diverged(runs: Sequence[Planned], logs: Path) -> list[str]:
    """A line on runs that are in no mean because their training diverged, as their logs say; nothing where there are none."""
    logged = [(run, log_of(run, logs)) for run in runs if run.state != "finished"]
    labels = [run.label for run, log in logged if log.is_file() and DIVERGED in log.read_text()]
    return [f"Diverged, hence in none of the means: {'; '.join(labels)}."] if labels else []


def wall(path: Path) -> list[str]:
    """What the sweeps have taken by the clock, those that were interrupted left out; nothing where none has ended."""
    if not path.is_file():
        return []
    times = pd.read_csv(path)
    at_once = " and ".join(map(str, sorted(times["jobs"].unique())))
    return [f"By the clock {times['seconds'].sum() / 60:.1f} minutes for {times['runs'].sum()} runs, {at_once} at a time."]


def commits(runs: Iterable[Run]) -> list[str]:
    """A line where runs were finished by more than one state of the code, or by another than today's."""
    known = {made_by(run.folder) for run in runs} - {None}
    now = commit()[0]
    if not known or known == {now}:
        return []
    return [f"Made by the code at {', '.join(sorted(known))}" + (f"; it is now at {now}." if now else ".")]


def draw(asked: Asked, found: published.Found) -> list[Path]:
    """The figures that are asked for, of every setting of which something is there."""
    paths: list[Path] = []
    experiment = asked.experiment
    table = published.compare(experiment, found)
    for row in experiment.rows:
        there = {column: tuple(found[row, column].values()) for column in experiment.columns if (row, column) in found}
        stem = asked.results / row.replace(" ", "_")
        if there and "convergence" in experiment.drawn:
            lines = {column: dict.fromkeys(PANELS, NOTHING) for column in experiment.columns}  # a column looks the same in every row
            for column, seeds in there.items():
                lines[column] = {panel: curve(Group(seeds, column, column, row), panel, "rounds") for panel in PANELS}
            paths += figures.convergence(lines, f"{stem}_convergence")
        if there and "labels" in experiment.drawn:
            paths += figures.partition(next(iter(there.values()))[0].counts(), f"{stem}_labels")
        if there and "differences" in experiment.drawn:
            mine = table[table["setting"] == row]
            paths += forest(mine, experiment.shown[0], experiment.reference, f"{stem}_differences")
    return paths


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with explained():
        sys.exit(reproduce(parse(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    main()
