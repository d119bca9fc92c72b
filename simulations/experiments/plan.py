"""The plan of an experiment: its definition, the runs that it consists of, and the state of each run."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from yaml import YAMLError

from fedkd.config.build import config_hash
from fedkd.config.validation import check_run
from fedkd.errors import ConfigError, require
from simulations.config import apply_tuned_params, compose, compose_with_hydra, make_absolute
from simulations.experiments.definition import Experiment
from simulations.overrides import CONF, nearest, options
from simulations.run_folder.divergence import read_divergence
from simulations.run_folder.source_code import changed_files

STATES = ("finished", "outdated", "interrupted", "missing")
"""The states of a run. An outdated one was finished by other code."""

States = dict[str, tuple[str, Path]]
"""Runs by key (see :func:`run_key`): ``finished`` or ``interrupted``, and the run folder."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment.

    Args:
        setting: name of the setting.
        strategy: name of the strategy.
        seed: seed of the run.
        config: the composed configuration.
        key: equal for equal runs (see :func:`run_key`).
        state: one of :data:`STATES`.
        folder: the run folder; None if the run is missing.
    """

    setting: str
    strategy: str
    seed: int
    config: DictConfig
    key: str
    state: str = "missing"
    folder: Path | None = None

    @property
    def label(self) -> str:
        """``alpha 0.1, FedGen, seed 0``."""
        return f"{self.setting}, {self.strategy}, seed {self.seed}"


def read_experiment(name: str, overrides: Sequence[str] = ()) -> Experiment:
    """The section ``reproduce`` of an experiment file.

    Raises:
        ConfigError: the experiment has no such section, or the section is wrong.
    """
    places = [word for word in overrides if word.startswith("searchpath=")]
    known = options("experiment", places)
    able = [one for one, path in known.items() if "\nreproduce:" in path.read_text(encoding="utf-8-sig")]
    composed = compose_with_hydra([f"experiment={name}", *places]).reproduce if name in known else {}
    node = OmegaConf.to_container(composed, resolve=False) if composed else {}
    if not node:
        raise ConfigError(f"experiment must be one that describes a sweep ({', '.join(able)}), got {name!r}{nearest(name, able)}")
    try:
        experiment = TypeAdapter(Experiment).validate_python(node)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["reproduce", *map(str, first["loc"])])
        raise ConfigError(f"{where} of experiment {name}: {first['msg']}, got {first['input']!r}") from error
    require(
        not experiment.inconsistencies(),
        f"reproduce of experiment {name}",
        "must name its own settings, strategies, metrics and figures",
        experiment.inconsistencies(),
    )
    return experiment


def plan(name: str, experiment: Experiment, overrides: Sequence[str], seeds: Sequence[int]) -> tuple[list[PlannedRun], list[str]]:
    """All runs of an experiment, in the order of its cells and seeds, and a note on every strategy that is not tuned yet.

    Raises:
        ConfigError: a configuration is wrong.
    """
    runs: list[PlannedRun] = []
    notes = []
    states: dict[Path, States] = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for row, column in experiment.cells():
            config = compose([f"experiment={name}", *experiment.settings[row], *experiment.strategies[column], *overrides])
            if config.tuned_params is not None and not has_choice(config):
                notes.append(f"{row}, {column}: not tuned yet")
                continue
            runs += each_seed(config, partial(PlannedRun, row, column), seeds, states)
    return runs, notes


def each_seed(
    config: DictConfig, named: Callable[..., PlannedRun], seeds: Sequence[int], states: dict[Path, States]
) -> Iterator[PlannedRun]:
    """The runs of one configuration, one per seed.

    Args:
        config: the composed configuration.
        named: makes a run from seed, configuration, key, state and folder.
        seeds: the seeds.
        states: the runs that exist, by output folder. A folder that is missing here is read once.
    """
    check_run(config)
    for seed in seeds:
        one = deepcopy(config)
        one.seed = seed
        tuned = deepcopy(one)
        apply_tuned_params(tuned, "strategy")
        parent, key = runs_folder(one), run_key(tuned)
        if parent not in states:
            states[parent] = find_runs(parent)
        state, folder = standing(tuned, states[parent].get(key))
        yield named(seed, one, key, "missing" if one.force and state == "finished" else state, folder)


def standing(config: DictConfig, found: tuple[str, Path] | None) -> tuple[str, Path | None]:
    """The state and the folder of a run whose folder holds ``found``. What other code has finished is outdated, unless it is accepted."""
    if found is None:
        return "missing", None
    state, folder = found
    outdated = state == "finished" and not config.accept_code and changed_files(folder, config)
    return ("outdated" if outdated else state), folder


def runs_folder(config: DictConfig) -> Path:
    """The folder of the run folders: ``<output>/<name>``."""
    return Path(config.output).expanduser().absolute() / config.name


def refresh(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The same runs with their present states and folders."""
    found = {parent: find_runs(parent) for parent in {runs_folder(run.config) for run in runs}}
    states = [standing(run.config, found[runs_folder(run.config)].get(run.key)) for run in runs]
    return [replace(run, state=state, folder=folder) for run, (state, folder) in zip(runs, states)]


def has_diverged(run: PlannedRun) -> bool:
    """The folder of an unfinished run records that its training diverged."""
    return run.state != "finished" and run.folder is not None and read_divergence(run.folder) is not None


def has_choice(config: DictConfig) -> bool:
    """The file ``tuned_params`` exists and holds a selected value for the strategy."""
    if not Path(config.tuned_params).expanduser().exists():
        return False
    try:
        return apply_tuned_params(deepcopy(config), "strategy") is not None
    except ValueError:
        return False


def run_key(config: DictConfig) -> str:
    """A key that is equal for two configurations of the same run, as far as this can be told without reading the data."""
    config = deepcopy(config)
    for part in ("data", "partition", "public_data", "systems"):
        make_absolute(config[part])
    return config_hash(config, dict(files(dict(OmegaConf.to_container(config, resolve=True)))))  # type: ignore[arg-type]


def files(node: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The paths of partition files and client traces, by key. The hash of a run holds their content instead."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from files(value, f"{prefix}{name}.")
        elif name in ("path", "trace") and value is not None:
            yield f"{prefix}{name}", str(value)


def find_runs(parent: Path) -> States:
    """The runs in the folders of ``parent``. Of runs with equal keys, a finished one is preferred."""
    found: States = {}
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        try:
            config = OmegaConf.load(folder / "config.yaml")
            key = run_key(config) if isinstance(config, DictConfig) else ""
        except (OSError, KeyError, AttributeError, TypeError, ValueError, YAMLError, OmegaConfBaseException):
            continue
        state = "finished" if is_finished(folder) else "interrupted"
        if key not in found or found[key][0] != "finished":
            found[key] = (state, folder)
    return found


def is_finished(folder: Path) -> bool:
    """The checkpoint in a run folder is that of the last round."""
    try:
        return bool(json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError, KeyError):
        return False


def unfinished(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs that are not finished, each once, interrupted ones first. A run that is both tuned and untuned counts as untuned."""
    once: dict[str, PlannedRun] = {}
    for run in runs:
        if run.state != "finished" and (
            run.key not in once or (once[run.key].config.tuned_params is not None and run.config.tuned_params is None)
        ):
            once[run.key] = run
    return sorted(once.values(), key=lambda run: run.state != "interrupted")


def count_states(runs: Sequence[PlannedRun]) -> str:
    """``63 runs: 40 finished, 1 interrupted, 22 missing``."""
    once = {run.key: run.state for run in runs}
    numbers = Counter(once.values())
    return f"{len(once)} runs: " + ", ".join(f"{numbers[state]} {state}" for state in STATES if state != "outdated" or numbers[state])
