"""Runs and distillations of one call of the Python API: composed, checked, and made one after the other or in processes of their own."""

import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedkd.config.validation import check_distillation, check_run
from fedkd.errors import ClientFailure, ConfigError, require
from simulations.api.keywords import is_main
from simulations.api.process_state import without_main_module
from simulations.config import compose
from simulations.distillation.runner import compose_distillation, run_distillation
from simulations.experiments.grid import LOGS, GridRun, read_data_once, with_engine_for
from simulations.experiments.plan import States, each_seed, refresh
from simulations.experiments.sweep import one_line, ready, sweep
from simulations.federation.runner import run_federation
from simulations.progress import ProgressTable, configure_logging
from simulations.run_folder.observers import RunObserver


def check_configs(combinations: Sequence[Sequence[str]], root: str, jobs: int) -> list[DictConfig]:
    """The configurations that words describe.

    Args:
        combinations: the words of each run.
        root: ``config`` for federated runs, ``distill`` for distillations.
        jobs: runs at a time.

    Raises:
        ConfigError: one is wrong, or its strategy is a class that its processes cannot import.
    """
    configs = []
    for words in combinations:
        if root == "config":
            config = compose(words)
            _check_class(config, jobs)
            check_run(config)
        else:
            config = compose_distillation(list(words))
            check_distillation(config)
        configs.append(config)
    return configs


def check_main(words: Sequence[str]) -> None:
    """Refuse a class of ``__main__`` with an engine that has other processes.

    Raises:
        ConfigError: naming engine and class.
    """
    if any(word.lstrip("+").startswith("strategy._target_=__main__.") for word in words):
        _check_class(compose(words), 1)


def _check_class(config: DictConfig, jobs: int) -> None:
    target = str(config.strategy.get("_target_", ""))
    if not is_main(target):
        return
    remedy = f"no other process can import {target}; put the class into a module, or give"
    if not str(config.engine.get("_target_", "")).endswith(".LocalGrid"):
        raise ConfigError(f"engine must be local for a strategy of __main__, got {config.choices.get('engine')}: {remedy} engine='local'")
    require(jobs == 1, "jobs", f"must be 1 for a strategy of __main__: {remedy} jobs=1", jobs)


def run_serially(configs: Sequence[DictConfig], combinations: Sequence[Sequence[str]], observers: Sequence[RunObserver]) -> list[Path]:
    """Make runs one after the other in this process, and return their folders.

    Args:
        configs: of :func:`check_configs`.
        combinations: the words of each.
        observers: of every run.

    Raises:
        ClientFailure: of several runs some failed. The others are done.
        Exception: the only run failed.
    """
    folders, failed = [], dict[str, Exception]()
    for config, label in zip(configs, _labels(configs, combinations), strict=True):
        make = run_distillation if "distiller" in config else run_federation
        try:
            folders.append(make(config, observers=observers))
        except Exception as error:
            if len(configs) == 1:
                raise
            failed[label] = error
            print(f"error: {label}: {one_line(error)}", file=sys.stderr, flush=True)
    if failed:
        said = {label: one_line(error) for label, error in failed.items()}
        raise _failure(said, len(configs)) from next(iter(failed.values()))
    return folders


def run_in_processes(configs: Sequence[DictConfig], combinations: Sequence[Sequence[str]], jobs: int) -> list[Path]:
    """Make runs in processes of their own, ``jobs`` at a time, and return their folders.

    Args:
        configs: of :func:`check_configs`, all federated or all distillations.
        combinations: the words of each.
        jobs: >= 1.

    Raises:
        ClientFailure: runs failed. The others are done.
    """
    runs = _planned(configs, combinations)
    left = [one for one in runs if one.state != "finished"]
    if left:
        configure_logging()
        at_once = min(jobs, len(left))
        logs = Path(left[0].config.output).expanduser().absolute() / LOGS
        if "distiller" not in left[0].config:
            read_data_once([one.config for one in left])
            left = [replace(one, config=with_engine_for(one.config, at_once)) for one in left]
        with without_main_module():
            ready()
            failed = sweep(left, at_once, logs, ProgressTable())
        if failed:
            raise _failure(failed, len(runs), f" (log: {logs})")
    return _folders(runs)


def _failure(failed: Mapping[str, str], number: int, remark: str = "") -> ClientFailure:
    """The error after all of ``number`` runs were tried: the runs that failed, by label, and why."""
    said = "; ".join(f"{label}: {why}" for label, why in failed.items())
    return ClientFailure(f"{len(failed)} of {number} runs failed{remark}: {said}")


def _labels(configs: Sequence[DictConfig], combinations: Sequence[Sequence[str]]) -> list[str]:
    """The words of each run that not all runs have; method and seed where there are none."""
    common = set.intersection(*map(set, combinations))
    labels = []
    for config, words in zip(configs, combinations, strict=True):
        part = "distiller" if "distiller" in config else "strategy"
        named = f"{part}={config.choices.get(part, part)} seed={config.seed}"
        labels.append(" ".join(word for word in words if word not in common) or named)
    return labels


def _planned(configs: Sequence[DictConfig], combinations: Sequence[Sequence[str]]) -> list[GridRun]:
    """The runs, each once, as they stand now. They are labeled by the words that not all of them have."""
    runs: dict[str, GridRun] = {}
    states: dict[Path, States] = {}
    for config, label in zip(configs, _labels(configs, combinations), strict=True):
        part = "distiller" if "distiller" in config else "strategy"
        name = config.choices.get(part, part)
        if part == "distiller":
            key = OmegaConf.to_yaml(config, resolve=True)
            runs.setdefault(key, GridRun("distillation", name, config.seed, config, key, words=label))
            continue
        for one in each_seed(config, partial(GridRun, config.choices.get("partition", "partition"), name), [config.seed], states):
            assert isinstance(one, GridRun), "each_seed makes the class that it is given"
            runs.setdefault(one.key, replace(one, words=label))
    return list(runs.values())


def _folders(runs: Sequence[GridRun]) -> list[Path]:
    """The folders of runs that are done."""
    if any("distiller" not in one.config for one in runs):
        return [one.folder for one in refresh(runs) if one.folder is not None]
    # The hash of a distillation contains the teacher's tensors, so the runner alone knows the folder. It skips what is finished.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return [run_distillation(one.config) for one in runs]
