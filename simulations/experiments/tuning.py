"""``fedkd tune``: choose a hyperparameter on held-out training data, with the same grid for every strategy or distillation method.

Each client holds out a fraction of its training examples. A value is scored by the local accuracy on these examples, averaged over the last
ten evaluated rounds. No test example is used. The rows of a search are appended to a CSV file, which a run reads with
``tuned_params=<file>``.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from fedkd.config.validation import check_run
from fedkd.errors import ClientFailure, DivergedError, require
from simulations.config import compose, number_like, tuned_rows
from simulations.distillation.runner import compose_distillation, run_distillation
from simulations.experiments.definition import Experiment, Tuning
from simulations.experiments.launch import launch, launcher_words
from simulations.experiments.plan import PlannedRun, States, each_seed, has_choice, has_diverged, refresh
from simulations.federation.runner import run_federation
from simulations.run_folder.csv_rows import append, header_of, widen
from simulations.run_folder.objective import read_objective

GRID, FACTORS = (0.01, 0.03, 0.1), (0.3, 1.0, 3.0)
"""The values that are tried for a strategy's key, and the multiples of a distillation method's shipped weight."""

COST = ("rounds_done", "client_updates", "seconds")
"""Columns of the cost of a trial."""

COLUMNS = ("option", "key", "value", "validation_accuracy", "rounds", "seed", "selected", "run", "validation_fraction", *COST)
"""Columns of ``tuned.csv``."""

Row = dict[str, Any]
"""One row of ``tuned.csv``."""


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
        key: the key that is chosen. A distillation method is tuned in the weight that it declares, and ``key`` is not read.
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
    if launcher := launcher_words(others):
        trials_of = partial(distiller_trials, values) if distiller else partial(strategy_trials, key, values)
        launch_trials([trial for name in names for trial in trials_of(validation_fraction, [*others, f"{part}={name}"])], launcher)
    for name in names:
        words = [*others, f"{part}={name}"]
        if distiller:
            tune_distiller(values, validation_fraction, words, path)
        else:
            tune_strategy(key, values, validation_fraction, words, path)
    print(f"table: {path}")
    return path


# ------------------------------------------------------------------------------------------- one search
def tune_strategy(key: str, grid: Sequence[float], fraction: float, overrides: Sequence[str], table: Path) -> float:
    """Try every value of ``grid`` for ``key``, append one row per value to ``table``, and return the best value, of equal ones the first.

    A value with which training diverges has accuracy 0.

    Raises:
        ConfigError: the configuration is wrong, or training diverges with every value.
    """
    rows = []
    for value, config in zip(grid, strategy_trials(key, grid, fraction, overrides)):
        try:
            folder = run_federation(config)
            accuracy = validation_accuracy(folder)
        except DivergedError as error:
            if error.folder is None:  # it is not the trial's result
                raise
            folder, accuracy = Path(error.folder), 0.0
        rows.append(trial_row(config, key, value, accuracy, folder))
    return select(rows, table, "local validation accuracy")


def strategy_trials(key: str, grid: Sequence[float], fraction: float, overrides: Sequence[str]) -> list[DictConfig]:
    """The configurations of the trials of :func:`tune_strategy`."""
    return [trial_config(compose(list(overrides)), key, value, fraction) for value in grid]


def launch_trials(trials: Sequence[DictConfig], words: Sequence[str]) -> None:
    """Make trials with a launcher. The searches then find them finished or diverged.

    Raises:
        ClientFailure: a trial failed for another reason than divergence. The others are done.
    """
    named = [PlannedRun("tuning", f"trial {number}", trial.seed, trial, "") for number, trial in enumerate(trials, start=1)]
    failed = launch(named, words, divergence_is_result=True)
    why = "; ".join(f"{label}: {reason}" for label, reason in failed.items())
    if failed:
        raise ClientFailure(f"{len(failed)} of {len(trials)} trials failed: {why}")


def trial_config(config: DictConfig, key: str, value: float, fraction: float) -> DictConfig:
    """The configuration of a trial of ``value``. It is scored on a ``fraction`` of each client's training examples, which are held out."""
    OmegaConf.update(config, key, number_like(OmegaConf.select(config, key), float(value)))
    config.validation_fraction, config.evaluation.split = fraction, "validation"
    return config


def trial_row(config: DictConfig, key: str, value: float, accuracy: float, folder: Path) -> Row:
    """The row of a trial, with its cost."""
    return {
        "option": config.choices.get("strategy", config.strategy["_target_"]),
        "key": key,
        "value": value,
        "validation_accuracy": accuracy,
        "rounds": config.rounds,
        "seed": config.seed,
        "run": str(Path(*folder.parts[-2:])) if accuracy else "",
        "validation_fraction": config.validation_fraction,
        **cost(folder),
    }


def cost(folder: Path) -> dict[str, float]:
    """The rounds that a run has computed, the client updates that these rounds aggregated, and the seconds by the run's own clocks."""
    rows = []
    if (folder / "metrics.csv").exists():  # the first round may have diverged
        with open(folder / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    seconds = sum(float(row[f"{phase}_seconds"] or 0) for row in rows for phase in ("local_training", "server", "evaluation"))
    updates = sum(int(row["num_clients_aggregated"] or 0) for row in rows)
    return {"rounds_done": len(rows), "client_updates": updates, "seconds": round(seconds, 2)}


def validation_accuracy(folder: Path) -> float:
    """The mean local accuracy of the last ten evaluated rounds of a trial."""
    return read_objective(folder, "local_test_accuracy_last10")


def tune_distiller(factors: Sequence[float], fraction: float, overrides: Sequence[str], table: Path) -> float:
    """Try every multiple of the method's weight, append one row per value to ``table``, and return the best value, of equal ones the first.

    A value with which training diverges has accuracy 0.

    Raises:
        ConfigError: the configuration is wrong, the method has no weight, or training diverges with every value.
    """
    rows: list[Row] = []
    for config in distiller_trials(factors, fraction, overrides):
        name, weight = config.choices.distiller, tuned_weight(config)
        value = config.distiller[weight]
        row: Row = {"option": name, "key": f"distiller.{weight}", "value": value, "rounds": config.epochs, "seed": config.seed}
        try:
            folder = run_distillation(config)
            row["validation_accuracy"] = read_objective(folder, "test_accuracy_final")
            row["run"] = str(folder.relative_to(Path(config.output).absolute()))
        except FloatingPointError:
            row["validation_accuracy"] = 0.0
        rows.append(row)
    return select(rows, table, "validation accuracy")


def distiller_trials(factors: Sequence[float], fraction: float, overrides: Sequence[str]) -> list[DictConfig]:
    """The configurations of the trials of :func:`tune_distiller`.

    Raises:
        ConfigError: the configuration is wrong, or the method has no weight.
    """
    shipped = compose_distillation([*overrides])
    weight = tuned_weight(shipped)
    values = [float(f"{factor * shipped.distiller[weight]:.6g}") for factor in factors]
    words = [[f"distiller.{weight}={value}", f"validation_fraction={fraction}"] for value in values]
    return [compose_distillation([*overrides, *some]) for some in words]


def tuned_weight(config: DictConfig) -> str:
    """The weight that a distillation method is tuned in.

    Raises:
        ConfigError: the method has none.
    """
    weight = get_object(config.distiller["_target_"]).tuned_weight
    require(weight is not None, "distiller", "must be a method with a weight that can be tuned", config.choices.distiller)
    return weight


def select(rows: Sequence[Row], table: Path, metric: str) -> float:
    """Append the rows of one search to ``table``, print the selected value and the cost of the search, and return the value.

    Raises:
        ConfigError: training diverged with every value.
    """
    best = max(rows, key=lambda row: float(row["validation_accuracy"]))
    rule = "must have a value with which training stays finite (try smaller ones)"
    require(best["validation_accuracy"] > 0, best["key"], rule, [row["value"] for row in rows])
    table.parent.mkdir(parents=True, exist_ok=True)
    if (header := header_of(table)) is not None and not set(COLUMNS) <= set(header):
        widen(table, [*header, *(name for name in COLUMNS if name not in header)])
    append(table, COLUMNS, [{**row, "selected": int(row is best)} for row in rows])
    accuracies = ", ".join(f"{row['value']:g}: {row['validation_accuracy']:.4f}" for row in rows)
    print(f"selected: {best['option']} {best['key']}={best['value']:g} ({metric}: {accuracies}){edge_warning(rows, best)}", flush=True)
    if all(name in row for row in rows for name in COST):
        rounds, updates, seconds = (sum(row[name] for row in rows) for name in COST)
        print(f"cost: {len(rows)} runs, {rounds} rounds, {updates} client updates, {seconds:.1f} s", flush=True)
    return float(best["value"])


def edge_warning(rows: Sequence[Row], best: Row) -> str:
    """A warning if the best value is the first or the last of the grid."""
    values = sorted(float(row["value"]) for row in rows)
    return "; this is the edge of the grid: a better value may lie beyond" if best["value"] in (values[0], values[-1]) else ""


# ------------------------------------------------------------------------------------------- searches of an experiment
@dataclass(frozen=True)
class Search:
    """A search that an experiment needs for a tuned strategy.

    Args:
        strategy: the option.
        table: the CSV file that the tuned runs read.
        name: the strategy's name in the experiment.
        words: the overrides of its trials.
        tuning: key, grid and held-out fraction.
    """

    strategy: str
    table: Path
    name: str
    words: list[str]
    tuning: Tuning


def tune_experiment(
    name: str, experiment: Experiment, overrides: Sequence[str], run: Callable[[Sequence[PlannedRun]], dict[str, str]]
) -> dict[str, str]:
    """Run the searches of an experiment that have no result yet, and write their tables.

    Args:
        name: of the experiment.
        experiment: its definition.
        overrides: overrides of all its runs.
        run: runs the trials that are not finished, and returns the reasons of those that failed, by label.

    Returns:
        The reasons of trials that failed. A diverged trial is a result and not a failure.

    Raises:
        ConfigError: see :func:`missing_searches`.
    """
    searches = [(search, list(trials(search))) for search in missing_searches(name, experiment, overrides)]
    if not searches:
        return {}
    failed = run([planned for _, planned_trials in searches for _, planned in planned_trials])
    for search, planned_trials in searches:
        ended = refresh([planned for _, planned in planned_trials])
        for trial in ended:
            if has_diverged(trial):
                failed.pop(trial.label, None)
        if any(trial.label in failed for trial in ended):
            continue
        rows = []
        for (value, _), trial in zip(planned_trials, ended):
            assert trial.folder is not None, "a trial that has run has a folder"
            accuracy = 0.0 if has_diverged(trial) else validation_accuracy(trial.folder)
            rows.append(trial_row(trial.config, search.tuning.key, value, accuracy, trial.folder))
        select(rows, search.table, "local validation accuracy")
    return failed


def missing_searches(name: str, experiment: Experiment, overrides: Sequence[str]) -> list[Search]:
    """The searches that the experiment needs and whose tables hold no selected value yet.

    Raises:
        ConfigError: a table holds a value that another search has selected.
    """
    tuning = experiment.tuning
    if tuning is None:
        return []
    needed: dict[tuple[str, Path], Search | None] = {}  # None: a value is selected
    for setting, strategy in experiment.cells():
        words = experiment.strategies[strategy]
        if not any(word.startswith("tuned_params=") for word in words):
            continue
        config = compose([f"experiment={name}", *experiment.settings[setting], *words, *overrides])
        table = None if config.tuned_params is None else Path(config.tuned_params).expanduser().absolute()
        if table is None or (config.choices.strategy, table) in needed:
            continue
        untuned = [word for word in words if not word.startswith("tuned_params=")]
        trial_words = [f"experiment={name}", *untuned, *tuning.overrides, *overrides]
        search = Search(config.choices.strategy, table, strategy, trial_words, tuning)
        selected = has_choice(config)
        if selected:
            check_same_search(search)
        needed[search.strategy, table] = None if selected else search
    return [search for search in needed.values() if search is not None]


def check_same_search(search: Search) -> None:
    """Refuse a table of another search, for example of fewer rounds or of another grid.

    Raises:
        ConfigError: the message names the file and the search that the experiment describes.
    """
    tuning, rounds, rows = search.tuning, compose(search.words).rounds, tuned_rows(search.table, search.strategy)
    settings = {(row.get("key"), float(row.get("rounds") or 0), float(row.get("validation_fraction") or 0)) for row in rows}
    values = {float(row["value"]) for row in rows}
    same = settings == {(tuning.key, float(rounds), float(tuning.validation_fraction))} and values == set(tuning.grid)
    described = f"{tuning.key} in {tuning.grid}, {rounds} rounds, {tuning.validation_fraction} held out"
    rule = f"must hold for {search.strategy} the search of the experiment ({described}); give another output, or remove the file"
    require(same, "tuned_params", rule, str(search.table))


def trials(search: Search) -> Iterator[tuple[float, PlannedRun]]:
    """The values of a grid, each with the run that tries it, in the folder of the search's table."""
    tuning = search.tuning
    states: dict[Path, States] = {}
    for value in tuning.grid:
        config = trial_config(compose(search.words), tuning.key, value, tuning.validation_fraction)
        config.output, config.name, config.tuned_params = str(search.table.parent.parent), search.table.parent.name, None
        check_run(config)
        label = f"{search.name} {tuning.key} {value:g}"
        (planned,) = each_seed(config, partial(PlannedRun, "tuning", label), [config.seed], states)
        yield value, planned
