"""An experiment of conf/experiment/: what it describes, the runs that it consists of, and which of them are there."""

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

States = dict[str, tuple[str, Path]]
"""By key: ``finished`` or ``interrupted``, and the run folder."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment.

    Args:
        setting: setting.
        strategy: strategy.
        seed: of the run.
        config: ready to be executed.
        key: equal for equal runs (see :func:`run_key`).
        state: ``finished``, ``interrupted`` or ``missing``.
        folder: where it is, unless it is missing.
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
    """What conf/experiment/``name``.yaml says under ``reproduce``.

    Raises:
        ConfigError: it says nothing, or what it says cannot be understood.
    """
    places = [word for word in overrides if word.startswith("searchpath=")]
    known = options("experiment", places)
    able = [one for one, path in known.items() if "\nreproduce:" in path.read_text(encoding="utf-8")]
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
    """All runs of the experiment, in the order of its cells and seeds, and a note on every column that waits to be tuned.

    Raises:
        ConfigError: a configuration is wrong.
    """
    runs, notes = [], []
    states: dict[Path, States] = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for row, column in experiment.cells():
            config = compose([f"experiment={name}", *experiment.settings[row], *experiment.strategies[column], *overrides])
            if config.tuned_params is not None and not has_choice(config):
                notes.append(f"{row}, {column}: waits for its learning rate to be tuned")
                continue
            runs += each_seed(config, partial(PlannedRun, row, column), seeds, states)
    return runs, notes


def each_seed(
    config: DictConfig, named: Callable[..., PlannedRun], seeds: Sequence[int], states: dict[Path, States]
) -> Iterator[PlannedRun]:
    """A cell's runs; ``states`` of what lies in output folders are looked up once."""
    check_run(config)
    for seed in seeds:
        one = deepcopy(config)
        one.seed = seed
        settled = deepcopy(one)
        apply_tuned_params(settled, "strategy")
        home, known = runs_folder(one), run_key(settled)
        if home not in states:
            states[home] = find_runs(home)
        yield named(seed, one, known, *states[home].get(known, ("missing", None)))


def runs_folder(config: DictConfig) -> Path:
    """The folder of the run folders: ``<output>/<name>``."""
    return Path(config.output).expanduser().absolute() / config.name


def refresh(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The same runs as they stand now."""
    found = {home: find_runs(home) for home in {runs_folder(run.config) for run in runs}}
    states = [found[runs_folder(run.config)].get(run.key, ("missing", None)) for run in runs]
    return [replace(run, state=state, folder=folder) for run, (state, folder) in zip(runs, states)]


def has_choice(config: DictConfig) -> bool:
    """The file ``tuned`` is there and holds a choice for the strategy."""
    if not Path(config.tuned_params).expanduser().exists():
        return False
    try:
        return apply_tuned_params(deepcopy(config), "strategy") is not None
    except ValueError:
        return False


def run_key(config: DictConfig) -> str:
    """Equal for two configurations whose runs are the same run, as far as can be told without a look at the data."""
    config = deepcopy(config)
    for part in ("data", "partition", "public_data", "systems"):
        make_absolute(config[part])
    return config_hash(config, dict(files(OmegaConf.to_container(config, resolve=True))))


def files(node: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The files that say who holds what and who takes part, which :func:`fedkd.config.build.identity` knows by their content alone."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from files(value, f"{prefix}{name}.")
        elif name in ("path", "trace") and value is not None:
            yield f"{prefix}{name}", str(value)


def find_runs(home: Path) -> States:
    """The runs in the folders of ``home``; of equal ones, which differ in data of the same name, a finished one."""
    found: States = {}
    for folder in sorted(home.iterdir()) if home.is_dir() else []:
        try:
            config = OmegaConf.load(folder / "config.yaml")
            known = run_key(config)
        except (OSError, KeyError, AttributeError, TypeError, ValueError, YAMLError, OmegaConfBaseException):
            continue
        state = "finished" if says_finished(folder) else "interrupted"
        if known not in found or found[known][0] != "finished":
            found[known] = (state, folder)
    return found


def says_finished(folder: Path) -> bool:
    """Its checkpoint is that of the last round."""
    try:
        return bool(json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError, KeyError):
        return False


def unfinished(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """What is left to be done, each run once, untuned where it is both, and those that were interrupted first."""
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
    return f"{len(once)} runs: " + ", ".join(f"{numbers[state]} {state}" for state in ("finished", "interrupted", "missing"))
