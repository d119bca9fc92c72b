"""The search that an experiment describes for its tuned columns: the same grid for every strategy, run as the sweep is."""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from fedkd.check import require
from fedkd.config import check
from simulations.command import compose
from simulations.described import Experiment, Tuning
from simulations.experiment import Planned, each_seed, has_choice, refreshed
from simulations.tune import DIVERGED, choose, judged, trial, tried

Trials = list[tuple[float, Planned]]
"""The values of a grid and the run that tries each."""


def tune(name: str, experiment: Experiment, overrides: Sequence[str], run: Callable[[Sequence[Planned]], dict[str, str]]) -> dict[str, str]:
    """Try what no choice has been made for yet, and note the choices where the columns look for them.

    Args:
        name: of the experiment.
        experiment: what it describes.
        overrides: of all its runs.
        run: runs what is not finished, and says why runs failed, by label.

    Returns:
        Why runs failed, divergence aside, which is an answer.
    """
    searches = {} if experiment.tuning is None else dict(searched(name, experiment, overrides))
    if not searches:
        return {}
    failed = run([planned for trials in searches.values() for _, planned in trials])
    for (_, table), trials in searches.items():
        odd = [planned for _, planned in trials if planned.label in failed and DIVERGED not in failed[planned.label]]
        if not odd:
            done = refreshed([planned for _, planned in trials])
            accuracies = [0.0 if one.label in failed else judged(one.folder) for one in done]
            values = [value for value, _ in trials]
            rows = [tried(one.config, experiment.tuning.key, *row, one.folder) for one, *row in zip(done, values, accuracies)]
            choose(rows, table)
    return {label: why for label, why in failed.items() if DIVERGED not in why}


def agree(name: str, experiment: Experiment, overrides: Sequence[str]) -> None:
    """Refuse choices that another search has made.

    Raises:
        ValueError: naming the file.
    """
    if experiment.tuning is not None:
        list(searched(name, experiment, overrides))


def searched(name: str, experiment: Experiment, overrides: Sequence[str]) -> Iterator[tuple[tuple[str, Path], Trials]]:
    """By strategy and table: the runs of a search whose choice is asked for and not there.

    Raises:
        ValueError: it is there, and another search has made it.
    """
    known = set()
    for row, column in experiment.cells():
        if not any(word.startswith("tuned=") for word in experiment.columns[column]):
            continue
        config = compose([f"experiment={name}", *experiment.rows[row], *experiment.columns[column], *overrides])
        table = None if config.tuned is None else Path(config.tuned).expanduser().absolute()
        if table is None or (config.choices.strategy, table) in known:
            continue
        known.add((config.choices.strategy, table))
        own = [word for word in experiment.columns[column] if not word.startswith("tuned=")]
        words = [f"experiment={name}", *own, *experiment.tuning.overrides, *overrides]
        if has_choice(config):
            same_search(table, config.choices.strategy, experiment.tuning, compose(words).rounds)
        else:
            yield (config.choices.strategy, table), list(trials(words, column, experiment.tuning, table))


def same_search(table: Path, strategy: str, tuning: Tuning, rounds: int) -> None:
    """Refuse a choice that another search has made, as one of fewer rounds or of another grid.

    Raises:
        ValueError: naming the file, and what was searched there.
    """
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["strategy"] == strategy]
    there = {(row.get("key"), float(row.get("rounds") or 0), float(row.get("validation") or 0)) for row in rows}
    same = there == {(tuning.key, float(rounds), float(tuning.validation))} and {float(row["value"]) for row in rows} == set(tuning.grid)
    searched = f"{tuning.key} in {tuning.grid}, {rounds} rounds, {tuning.validation} held out"
    rule = f"must hold for {strategy} the search that the experiment describes ({searched}); give another output, or remove the file"
    require(same, "tuned", rule, str(table))


def trials(words: list[str], column: str, tuning: Tuning, table: Path) -> Iterator[tuple[float, Planned]]:
    """The runs of one search, in the folder of its table."""
    states: dict = {}
    for value in tuning.grid:
        config = trial(compose(words), tuning.key, value, tuning.validation)
        config.output, config.name, config.tuned = str(table.parent.parent), table.parent.name, None
        check(config)

        def named(seed: int, one: DictConfig, *rest: object, value: float = value) -> Planned:
            return Planned("tuning", f"{column} {tuning.key} {value:g}", seed, one, *rest)

        yield value, *each_seed(config, named, [config.seed], states)
