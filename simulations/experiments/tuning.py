"""``fedkd tune``: choose a hyperparameter on held-out training data, with the same grid for every strategy or distillation method.

Each client holds out a share of its training examples. A value is scored by the local accuracy on these examples, averaged over the last
ten evaluated rounds. No test example is used. The choice is appended to a CSV file, which a run reads with ``tuned_params=<file>``.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from fedkd.config.validation import check_run
from fedkd.errors import ClientFailure, require
from simulations.config import compose, tuned_rows
from simulations.distillation.folder import read_rows
from simulations.distillation.runner import compose_distillation, run_distillation
from simulations.experiments.definition import Experiment, Tuning
from simulations.experiments.plan import PlannedRun, each_seed, find_runs, has_choice, refresh, runs_folder
from simulations.experiments.plan import run_key as key_of
from simulations.federation.runner import run_federation
from simulations.run_folder.csv_rows import append, header_of, widen


@dataclass(frozen=True)
class Search:
    """A search that columns ask for: the strategy, the table of choices, the column and the overrides of its trials."""

    strategy: str
    table: Path
    column: str
    words: list[str]


def tune_experiment(
    name: str, experiment: Experiment, overrides: Sequence[str], run: Callable[[Sequence[PlannedRun]], dict[str, str]]
) -> dict[str, str]:
    """Try what no choice has been made for yet, and note the choices where the columns look for them.

    Args:
        name: of the experiment.
        experiment: what it describes.
        overrides: of all its runs.
        run: runs what is not finished, and says why runs failed, by label.

    Returns:
        Why runs failed, divergence aside, which is an answer.

    Raises:
        ConfigError: as :func:`missing_searches` does.
    """
    searches = [(one.table, list(trials(one, experiment.tuning))) for one in missing_searches(name, experiment, overrides)]
    if not searches:
        return {}
    failed = run([planned for _, tries in searches for _, planned in tries])
    for table, tries in searches:
        odd = [planned for _, planned in tries if planned.label in failed and DIVERGED not in failed[planned.label]]
        if not odd:
            done = refresh([planned for _, planned in tries])
            accuracies = [0.0 if one.label in failed else judged(one.folder) for one in done]
            values = [value for value, _ in tries]
            rows = [tried(one.config, experiment.tuning.key, *row, one.folder) for one, *row in zip(done, values, accuracies)]
            choose(rows, table)
    return {label: why for label, why in failed.items() if DIVERGED not in why}


def missing_searches(name: str, experiment: Experiment, overrides: Sequence[str]) -> list[Search]:
    """The searches whose choice is asked for and not there.

    Raises:
        ConfigError: one is there, and another search has made it.
    """
    found: dict[tuple[str, Path], Search | None] = {}  # None: its choice is there
    for row, column in experiment.cells() if experiment.tuning is not None else ():
        if not any(word.startswith("tuned_params=") for word in experiment.strategies[column]):
            continue
        config = compose([f"experiment={name}", *experiment.settings[row], *experiment.strategies[column], *overrides])
        table = None if config.tuned_params is None else Path(config.tuned_params).expanduser().absolute()
        if table is None or (config.choices.strategy, table) in found:
            continue
        own = [word for word in experiment.strategies[column] if not word.startswith("tuned_params=")]
        one = Search(config.choices.strategy, table, column, [f"experiment={name}", *own, *experiment.tuning.overrides, *overrides])
        there = has_choice(config)
        if there:
            same_search(one, experiment.tuning)
        found[one.strategy, table] = None if there else one
    return [one for one in found.values() if one is not None]


def same_search(one: Search, tuning: Tuning) -> None:
    """Refuse a choice that another search has made, as one of fewer rounds or of another grid.

    Raises:
        ConfigError: naming the file, and what is searched here.
    """
    rounds, rows = compose(one.words).rounds, tuned_rows(one.table, one.strategy)
    there = {(row.get("key"), float(row.get("rounds") or 0), float(row.get("validation_fraction") or 0)) for row in rows}
    same = there == {(tuning.key, float(rounds), float(tuning.validation_fraction))} and {float(row["value"]) for row in rows} == set(
        tuning.grid
    )
    here = f"{tuning.key} in {tuning.grid}, {rounds} rounds, {tuning.validation_fraction} held out"
    rule = f"must hold for {one.strategy} the search that the experiment describes ({here}); give another output, or remove the file"
    require(same, "tuned_params", rule, str(one.table))


def trials(one: Search, tuning: Tuning) -> Iterator[tuple[float, PlannedRun]]:
    """The values of a grid and the run that tries each, in the folder of the search's table."""
    states: dict = {}
    for value in tuning.grid:
        config = trial(compose(one.words), tuning.key, value, tuning.validation_fraction)
        config.output, config.name, config.tuned_params = str(one.table.parent.parent), one.table.parent.name, None
        check_run(config)

        def named(seed: int, config: DictConfig, *rest: object, value: float = value) -> PlannedRun:
            return PlannedRun("tuning", f"{one.column} {tuning.key} {value:g}", seed, config, *rest)

        yield value, *each_seed(config, named, [config.seed], states)


COST = ("rounds_done", "client_updates", "seconds")

DIVERGED = "no longer finite"


COLUMNS = ("option", "key", "value", "validation_accuracy", "rounds", "seed", "selected", "run", "validation_fraction", *COST)


def tune_strategy(key: str, grid: Sequence[float], share: float, overrides: Sequence[str], table: Path) -> float:
    """Try every value of ``grid`` for ``key``, append a row for each to ``table``, and return the best; of equals the first.

    A value with which training diverges counts as accuracy 0.

    Raises:
        ConfigError: the configuration is wrong, or training diverges with every value.
    """
    rows = []
    for value in grid:
        config = trial(compose(list(overrides)), key, value, share)
        try:
            folder = run_federation(config)
            accuracy = judged(folder)
        except ClientFailure as error:
            if DIVERGED not in str(error):
                raise
            folder, accuracy = find_runs(runs_folder(config))[key_of(config)][1], 0.0
        rows.append(tried(config, key, value, accuracy, folder))
    return choose(rows, table)


def trial(config: DictConfig, key: str, value: float, share: float) -> DictConfig:
    """The run that tries ``value``: judged on a ``share`` of each client's training examples, which nobody trains on."""
    OmegaConf.update(config, key, value)
    config.validation_fraction, config.evaluation.split = share, "validation"
    return config


def tried(config: DictConfig, key: str, value: float, accuracy: float, folder: Path) -> dict[str, object]:
    """The row of a value that was tried, with what it has cost; ``folder`` is that of its run."""
    strategy = config.choices.get("strategy", config.strategy["_target_"])
    row = {"option": strategy, "key": key, "value": value, "validation_accuracy": accuracy, "rounds": config.rounds, "seed": config.seed}
    return {
        **row,
        "run": str(Path(*folder.parts[-2:])) if accuracy else "",
        "validation_fraction": config.validation_fraction,
        **cost(folder),
    }


def cost(folder: Path) -> dict[str, float]:
    """What a run has computed so far: rounds, clients' updates that they used, and seconds by the run's own clocks."""
    rows = []
    if (folder / "metrics.csv").exists():  # not where the first round has diverged
        with open(folder / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    seconds = sum(float(row[f"{phase}_seconds"] or 0) for row in rows for phase in ("local_training", "server", "evaluation"))
    return {
        "rounds_done": len(rows),
        "client_updates": sum(int(row["num_clients_aggregated"] or 0) for row in rows),
        "seconds": round(seconds, 2),
    }


def choose(rows: Sequence[dict[str, object]], table: Path) -> float:
    """Append the rows of one search to ``table``, say which value is chosen and what the search has cost, and return it.

    Raises:
        ConfigError: training diverged with every value.
    """
    best = max(rows, key=lambda row: row["validation_accuracy"])
    values = [row["value"] for row in rows]
    require(
        best["validation_accuracy"] > 0,
        best["key"],
        "must leave training finite with one value of the grid at least (smaller ones)",
        values,
    )
    table.parent.mkdir(parents=True, exist_ok=True)
    if (header := header_of(table)) is not None and not set(COLUMNS) <= set(header):
        widen(table, [*header, *(name for name in COLUMNS if name not in header)])
    append(table, COLUMNS, [{**row, "selected": int(row is best)} for row in rows])
    shown = ", ".join(f"{row['value']:g}: {row['validation_accuracy']:.4f}" for row in rows)
    total = {name: sum(row[name] for row in rows) for name in COST}
    print(f"selected: {best['option']} {best['key']}={best['value']:g} (local validation accuracy: {shown}){edge(rows, best)}")
    print(
        f"cost: {len(rows)} runs, {total['rounds_done']} rounds, {total['client_updates']} client updates, {total['seconds']:.1f} s",
        flush=True,
    )
    return best["value"]


def edge(rows: Sequence[dict[str, object]], best: dict[str, object]) -> str:
    """A warning where the best value has others on one side alone."""
    values = sorted(row["value"] for row in rows)
    return "; the last of the grid: a better one may lie beyond" if best["value"] in (values[0], values[-1]) else ""


def judged(folder: Path) -> float:
    """The mean of the last ten evaluated rounds on own labels."""
    with open(folder / "metrics.csv", newline="") as file:
        values = [float(row["local_test_accuracy"]) for row in csv.DictReader(file) if row["local_test_accuracy"]][-10:]
    return sum(values) / len(values)


def tune_distiller(factors: Sequence[float], share: float, overrides: Sequence[str], table: Path) -> float:
    """Try every multiple of the method's weight, append a row for each to ``table``, and return the best value; of equals the first.

    A value with which training diverges counts as accuracy 0.

    Raises:
        ConfigError: the configuration is wrong, the method has no weight, or training diverges with every value.
    """
    shipped = compose_distillation([*overrides])
    name, scale = shipped.choices.distiller, get_object(shipped.distiller["_target_"]).scale
    require(scale is not None, "distiller", "must be a method with a weight to be tuned", name)
    found = []
    for factor in factors:
        value = float(f"{factor * shipped.distiller[scale]:.6g}")
        config = compose_distillation([*overrides, f"distiller.{scale}={value}", f"validation_fraction={share}"])
        row = {"option": name, "key": f"distiller.{scale}", "value": value, "rounds": config.epochs, "seed": config.seed}
        try:
            folder = run_distillation(config)
            row |= {
                "validation_accuracy": float(read_rows(folder)[-1]["test_accuracy"]),
                "run": str(folder.relative_to(Path(config.output).absolute())),
            }
        except FloatingPointError:
            row |= {"validation_accuracy": 0.0}
        found.append(row)
    best = max(found, key=lambda row: row["validation_accuracy"])
    require(
        best["validation_accuracy"] > 0, best["key"], "must leave training finite with one multiple at least (smaller ones)", list(factors)
    )
    table.parent.mkdir(parents=True, exist_ok=True)
    append(table, COLUMNS, [{**row, "selected": int(row is best)} for row in found])
    shown = ", ".join(f"{row['value']:g}: {row['validation_accuracy']:.4f}" for row in found)
    print(f"selected: {name} {best['key']}={best['value']:g} (validation accuracy: {shown}){edge(found, best)}", flush=True)
    return best["value"]


GRID, FACTORS = (0.01, 0.03, 0.1), (0.3, 1.0, 3.0)
"""The values that are tried for a strategy's key, and the multiples of a distillation method's shipped weight."""


def tune(
    overrides: Sequence[str] = (),
    *,
    key: str = "optimizer.lr",
    grid: Sequence[float] | None = None,
    validation_fraction: float = 0.2,
    table: Path | None = None,
    distiller: bool = False,
) -> Path:
    """Choose a hyperparameter for each strategy or distillation method that the overrides name, from the same grid.

    Args:
        overrides: words ``KEY=VALUE``; ``strategy=a,b`` (or ``distiller=a,b``) names several.
        key: that is chosen. A distillation method is tuned in the weight that it declares, and ``key`` is not read.
        grid: values of ``key``, default 0.01, 0.03, 0.1; or multiples of the method's shipped weight, default 0.3, 1, 3.
        validation_fraction: in (0, 1), fraction of each client's training examples (or of the training images) that is held out.
        table: the CSV file to which one row per value is appended; None for ``<output>/<name>/tuned.csv``.
        distiller: tune distillation methods instead of strategies.

    Returns:
        The path of the table.

    Raises:
        ConfigError: the configuration is wrong, or training diverges with every value.
    """
    part, composing = ("distiller", compose_distillation) if distiller else ("strategy", compose)
    require(0 < validation_fraction < 1, "validation", "must be a fraction in (0, 1)", validation_fraction)
    values = list((FACTORS if distiller else GRID) if grid is None else grid)
    require(len(values) > 0, "grid", "must hold one value at least", values)
    named = [word for word in overrides if word.startswith(f"{part}=")]
    others = [word for word in overrides if word not in named]
    names = named[-1].partition("=")[2].split(",") if named else [composing(others).choices[part]]
    configs = [composing([*others, f"{part}={name}"]) for name in names]  # every name is known before the first run
    path = Path(configs[0].output) / configs[0].name / "tuned.csv" if table is None else table
    for name in names:
        words = [*others, f"{part}={name}"]
        if distiller:
            tune_distiller(values, validation_fraction, words, path)
        else:
            tune_strategy(key, values, validation_fraction, words, path)
    print(f"table: {path}")
    return path
