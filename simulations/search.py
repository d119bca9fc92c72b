"""The search that an experiment describes for its tuned columns: the same grid for every strategy, run as the sweep is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from fedkd.check import require
from fedkd.config import check
from simulations.command import compose, tuned_rows
from simulations.described import Experiment, Tuning
from simulations.experiment import Planned, each_seed, has_choice, refreshed
from simulations.tune import DIVERGED, choose, judged, trial, tried


@dataclass(frozen=True)
class Search:
    """A search that columns ask for: the strategy, the table of choices, the column and the overrides of its trials."""

    strategy: str
    table: Path
    column: str
    words: list[str]


def tune(name: str, experiment: Experiment, overrides: Sequence[str], run: Callable[[Sequence[Planned]], dict[str, str]]) -> dict[str, str]:
    """Try what no choice has been made for yet, and note the choices where the columns look for them.

    Args:
        name: of the experiment.
        experiment: what it describes.
        overrides: of all its runs.
        run: runs what is not finished, and says why runs failed, by label.

    Returns:
        Why runs failed, divergence aside, which is an answer.

    Raises:
        ValueError: as :func:`left` does.
    """
    searches = [(one.table, list(trials(one, experiment.tuning))) for one in left(name, experiment, overrides)]
    if not searches:
        return {}
    failed = run([planned for _, tries in searches for _, planned in tries])
    for table, tries in searches:
        odd = [planned for _, planned in tries if planned.label in failed and DIVERGED not in failed[planned.label]]
        if not odd:
            done = refreshed([planned for _, planned in tries])
            accuracies = [0.0 if one.label in failed else judged(one.folder) for one in done]
            values = [value for value, _ in tries]
            rows = [tried(one.config, experiment.tuning.key, *row, one.folder) for one, *row in zip(done, values, accuracies)]
            choose(rows, table)
    return {label: why for label, why in failed.items() if DIVERGED not in why}


def left(name: str, experiment: Experiment, overrides: Sequence[str]) -> list[Search]:
    """The searches whose choice is asked for and not there.

    Raises:
        ValueError: one is there, and another search has made it.
    """
    found: dict[tuple[str, Path], Search | None] = {}  # None: its choice is there
    for row, column in experiment.cells() if experiment.tuning is not None else ():
        if not any(word.startswith("tuned=") for word in experiment.columns[column]):
            continue
        config = compose([f"experiment={name}", *experiment.rows[row], *experiment.columns[column], *overrides])
        table = None if config.tuned is None else Path(config.tuned).expanduser().absolute()
        if table is None or (config.choices.strategy, table) in found:
            continue
        own = [word for word in experiment.columns[column] if not word.startswith("tuned=")]
        one = Search(config.choices.strategy, table, column, [f"experiment={name}", *own, *experiment.tuning.overrides, *overrides])
        there = has_choice(config)
        if there:
            same_search(one, experiment.tuning)
        found[one.strategy, table] = None if there else one
    return [one for one in found.values() if one is not None]


def same_search(one: Search, tuning: Tuning) -> None:
    """Refuse a choice that another search has made, as one of fewer rounds or of another grid.

    Raises:
        ValueError: naming the file, and what is searched here.
    """
    rounds, rows = compose(one.words).rounds, tuned_rows(one.table, one.strategy)
    there = {(row.get("key"), float(row.get("rounds") or 0), float(row.get("validation") or 0)) for row in rows}
    same = there == {(tuning.key, float(rounds), float(tuning.validation))} and {float(row["value"]) for row in rows} == set(tuning.grid)
    here = f"{tuning.key} in {tuning.grid}, {rounds} rounds, {tuning.validation} held out"
    rule = f"must hold for {one.strategy} the search that the experiment describes ({here}); give another output, or remove the file"
    require(same, "tuned", rule, str(one.table))


def trials(one: Search, tuning: Tuning) -> Iterator[tuple[float, Planned]]:
    """The values of a grid and the run that tries each, in the folder of the search's table."""
    states: dict = {}
    for value in tuning.grid:
        config = trial(compose(one.words), tuning.key, value, tuning.validation)
        config.output, config.name, config.tuned = str(one.table.parent.parent), one.table.parent.name, None
        check(config)

        def named(seed: int, config: DictConfig, *rest: object, value: float = value) -> Planned:
            return Planned("tuning", f"{one.column} {tuning.key} {value:g}", seed, config, *rest)

        yield value, *each_seed(config, named, [config.seed], states)
