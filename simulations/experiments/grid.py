"""``fedkd sweep``: every combination of the values that commas separate, several runs at a time."""

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from fedkd.errors import ConfigError, require
from simulations.config import compose, make_absolute
from simulations.experiments.launch import check_jobs, launch, launcher_words
from simulations.experiments.plan import PlannedRun, States, each_seed, refresh, unfinished
from simulations.experiments.sweep import ready, sweep
from simulations.overrides import explain, with_quoted_path
from simulations.process import cores
from simulations.progress import ProgressTable, configure_logging
from simulations.setup.clients import read_data

LOGS = "logs"
"""Folder beside the run folders' parents, with a file for what each run has printed."""


@dataclass(frozen=True)
class GridRun(PlannedRun):
    """A run of a grid.

    Args:
        words: the overrides that set it apart from the others.
    """

    words: str = ""

    @property
    def label(self) -> str:
        """``strategy=fedgen seed=0``."""
        return self.words


def expand(words: Sequence[str]) -> list[list[str]]:
    """All combinations of the values of sweeps (``a,b``, ``choice(a,b)``, ``range(0,5)``). The last word varies fastest.

    Raises:
        ConfigError: a word is not KEY=VALUE, or a sweep has no values to list.
    """
    try:
        parsed = OverridesParser.create().parse_overrides([with_quoted_path(word) for word in words])
        lists = []
        for one in parsed:
            if not one.is_sweep_override():
                lists.append([str(one.input_line)])
            elif one.is_discrete_sweep():
                lists.append([f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()])
            else:
                raise ConfigError(f"{one.key_or_group} must list its values, got {one.input_line!r}; write {one.key_or_group}=a,b")
    except HydraException as error:
        raise ConfigError(explain(error)) from error
    return [list(combination) for combination in itertools.product(*lists)]


def plan_grid(words: Sequence[str]) -> list[GridRun]:
    """The runs of a grid, each once, in the order of :func:`expand`, as they stand now.

    Raises:
        ConfigError: a configuration is wrong; the message is that of a single run.
    """
    combinations = expand(words)
    varied = [place for place in range(len(combinations[0])) if len({one[place] for one in combinations}) > 1]
    runs: dict[str, GridRun] = {}
    states: dict[Path, States] = {}
    for combination in combinations:
        config = compose(combination)
        names = config.choices
        label = " ".join(combination[place] for place in varied) or f"strategy={names.get('strategy')} seed={config.seed}"
        named = partial(GridRun, names.get("partition", "partition"), names.get("strategy", "strategy"))
        for run in each_seed(config, named, [config.seed], states):
            assert isinstance(run, GridRun)
            runs.setdefault(run.key, replace(run, words=label))
    return list(runs.values())


def run_grid(words: Sequence[str], *, jobs: int | None = None, quiet: bool = False) -> tuple[list[Path], dict[str, str]]:
    """Make what is missing of a grid.

    Args:
        words: overrides, sweeps among them.
        jobs: >= 1, runs at a time, each in a process of its own; None for one per core.
        quiet: print one line per run, when it ends.

    Returns:
        The folders of all finished runs, in the order of the combinations, and why the others failed, by label.

    Raises:
        ConfigError: a configuration is wrong; nothing was begun.
    """
    require(jobs is None or jobs >= 1, "jobs", "must be >= 1", jobs)
    launcher = launcher_words(words)
    check_jobs(jobs, launcher)
    runs: list[PlannedRun] = list(plan_grid(words))
    left = unfinished(runs)
    failed: dict[str, str] = {}
    began = time.monotonic()
    for run in runs:
        if run not in left:
            print(f"{run.label}: already finished, skipped", file=sys.stderr)
    if left and launcher:
        configure_logging()
        read_data_once([run.config for run in left])
        failed = launch(left, launcher)
    elif left:
        ready()
        configure_logging()
        read_data_once([run.config for run in left])
        at_once = min(jobs or cores(), len(left))
        logs = Path(left[0].config.output).expanduser().absolute() / LOGS
        configured = [replace(run, config=with_engine_for(run.config, at_once)) for run in left]
        failed = sweep(configured, at_once, logs, ProgressTable(quiet=quiet))
        failed = {label: f"{why} (log: {logs})" for label, why in failed.items()}
    if left:
        runs = list(refresh(runs))
        took = timedelta(seconds=round(time.monotonic() - began))
        print(f"{len(left) - len(failed)} of {len(left)} runs finished in {took}", file=sys.stderr)
    return [run.folder for run in runs if run.state == "finished" and run.folder is not None], failed


def read_data_once(configs: Sequence[DictConfig]) -> None:
    """Read every data set of many runs once before the first run, so that they find it decoded; and check that partition files exist.

    Raises:
        ConfigError: one is not where ``data.root`` or ``partition.path`` says.
    """
    known = []
    for config in configs:
        make_absolute(config.data)
        path = config.partition.get("path")
        there = path is None or Path(path).expanduser().is_file()
        require(there, "partition.path", "must be an npz file with train_00, test_00, ...", path)
        if config.data not in known:
            known.append(config.data)
            read_data(config)


def with_engine_for(config: DictConfig, jobs: int) -> DictConfig:
    """The run with as many actors as there are cores for one of ``jobs`` runs; with one, in one process. A chosen engine stays."""
    share = cores() // jobs
    if config.choices.engine == "ray" and config.engine.get("workers") is None and config.engine.get("address") is None:
        if share > 1:
            config.engine.workers = share
        else:
            config.engine, config.choices.engine = compose(["engine=local"]).engine, "local"
    return config
