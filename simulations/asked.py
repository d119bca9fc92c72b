"""What ``simulations.reproduce`` is asked for: its own words of the command line, and those of the configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from fedkd.check import require
from simulations.command import compose
from simulations.described import Experiment
from simulations.experiment import Planned, described, home_of, plan
from simulations.machine import cores

KEYS = ("experiment", "seeds", "rows", "columns", "jobs", "quiet", "only")
PLACES = ("data.root=", "data.cache=", "data.download=", "output=", "engine", "progress=", "checkpoint_every=")
"""What is overridden without another result."""


@dataclass(frozen=True)
class Asked:
    """The command line: which experiment, what of it, and how."""

    name: str
    experiment: Experiment
    seeds: list[int]
    jobs: int
    quiet: bool
    only: str | None
    overrides: list[str]

    @cached_property
    def home(self) -> Path:
        """``<output>/<name>``, as the configuration has it."""
        return home_of(compose([f"experiment={self.name}", *self.overrides]))

    @property
    def results(self) -> Path:
        """Where the table and the figures go."""
        return self.home / "reproduce" / self.name

    def plan(self) -> tuple[list[Planned], list[str]]:
        """All runs as they stand now."""
        return plan(self.name, self.experiment, self.overrides, self.seeds)


def parse(argv: Sequence[str]) -> Asked:
    """What is asked for.

    Raises:
        ValueError: it cannot be understood.
    """
    pairs = [word.partition("=") for word in argv]
    given = {name: value for name, _, value in pairs if name in KEYS}
    require("experiment" in given, "experiment", "must be named: experiment=fedgen_table1_mnist", None)
    require("seed" not in [name for name, _, _ in pairs], "seeds", "must be given in place of seed", "seed=")
    experiment = described(given["experiment"])
    rows, columns = (chosen(part, getattr(experiment, part), given.get(part)) for part in ("rows", "columns"))
    base, reference = experiment.ratio_to, experiment.reference
    require(base in (None, *columns), "columns", f"must have {base} among them, to which all figures are ratios", list(columns))
    experiment = replace(experiment, rows=rows, columns=columns)
    require(bool(experiment.cells()), "columns", "must be there in one of the rows at least", list(columns))
    lacks = reference is not None and reference not in columns
    if lacks:
        experiment = replace(experiment, reference=None, drawn=[name for name in experiment.drawn if name != "differences"])
    only, quiet = given.get("only"), given.get("quiet", "false")
    require(only in (None, "plan", "table"), "only", "must be plan or table", only)
    require(quiet in ("true", "false"), "quiet", "must be true or false", quiet)
    jobs = 1 if experiment.alone else number(given.get("jobs", str(cores())), "jobs")
    require(jobs >= 1, "jobs", "must be >= 1", jobs)
    seeds = [number(seed, "seeds") for seed in given["seeds"].split(",")] if "seeds" in given else experiment.seeds
    overrides = [word for word, (name, _, _) in zip(argv, pairs) if name not in KEYS]
    odd = [word for word in overrides if not word.startswith(PLACES)]
    notes = [experiment.note, f"NOT as the experiment has it: {' '.join(odd)}." if odd else ""]
    notes.append(f"{reference}, from which differences are, is not among the columns." if lacks else "")
    note = " ".join(filter(None, notes))
    return Asked(given["experiment"], replace(experiment, note=note), seeds, jobs, quiet == "true", only, overrides)


def number(text: str, name: str) -> int:
    """A whole number."""
    require(text.strip().isdigit(), name, "must be whole numbers", text)
    return int(text)


def chosen(part: str, all_of_it: dict[str, list[str]], names: str | None) -> dict[str, list[str]]:
    """The rows or columns that are asked for, by their names with commas between; all where none are."""
    if names is None:
        return all_of_it
    asked = [name.strip() for name in names.split(",")]
    require(set(asked) <= set(all_of_it), part, f"must be of {', '.join(all_of_it)}", names)
    return {name: value for name, value in all_of_it.items() if name in asked}
