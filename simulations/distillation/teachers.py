"""Teachers from finished runs: the global model or the client ensemble of a federated run, or the student of a distillation."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from yaml import YAMLError

from fedkd.checkpoint import read_checkpoint, read_header
from fedkd.config.validation import leaves
from fedkd.distillation.methods.base import StudentModule
from fedkd.errors import ConfigError, RunFolderError, one_line, require
from fedkd.federation.server import Server
from fedkd.models.ensemble import Ensemble, EnsembleModel
from fedkd.strategy import Strategy
from fedkd.training.functional_model import snapshot
from fedkd.types import Examples, State, Task, Tensors
from simulations.run_folder.stored_config import load_stored
from simulations.setup.simulation import Simulation, build_simulation
from simulations.user_modules import allowed_targets


@dataclass(frozen=True)
class Teacher:
    """A trained teacher.

    Args:
        module: the network, with the modules of the method that it was trained by. Its own parameters have no meaning.
        tensors: all parameters and buffers of ``module`` by name.
    """

    module: StudentModule
    tensors: Tensors


@dataclass(frozen=True)
class TeacherRun:
    """A run that provides the teacher and the data of a distillation.

    Args:
        data: the task, the training images and the test images of the run.
        teacher: the trained model.
        network: configuration of its network.
        network_name: name of the network in labels and error messages.
    """

    data: tuple[Task, Examples, Examples]
    teacher: Teacher
    network: DictConfig
    network_name: str


def read_finished_config(folder: Path, server_round: int | None = None, user: DictConfig | None = None) -> DictConfig:
    """The configuration of a run that can provide a teacher.

    The run may be someone else's, so it names no code: the modules that its ``_target_`` may name are those of ``user``.

    Args:
        folder: the run folder.
        server_round: the round that the run's last checkpoint must be of. None if the run must be finished.
        user: the configuration of this command, with ``searchpath`` and ``allow_targets``. None: only the working directory counts.

    Raises:
        ConfigError: ``folder`` is not a run folder, or its last checkpoint is of another round.
        RunFolderError: its configuration cannot be read.
    """
    require((folder / "config.yaml").is_file(), "teacher_run", "must be a run folder (it holds config.yaml)", str(folder))
    header = read_header(folder)
    done = "no checkpoint yet" if header is None else f"{header['round']} of {header['rounds']} done"
    if server_round is not None:
        reached = header is not None and header["round"] == server_round
        require(reached, "round", f"must be the round of the run's checkpoint ({done})", server_round)
    else:
        finished = header is not None and bool(header["finished"])
        require(finished, "teacher_run", f"must be finished; run the same command again to resume it ({done})", str(folder))
    try:
        config = OmegaConf.create(load_stored(folder / "config.yaml"))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise RunFolderError(f"teacher_run must be a run folder with a configuration of this version: {one_line(error)}") from error
    searchpath, named = ([], []) if user is None else (user.searchpath, user.allow_targets)
    config.searchpath, config.allow_targets = searchpath, allowed_targets(config, named, searchpath)
    return config


def apply_paths(config: DictConfig, paths: Mapping[str, Any], folder: Path) -> None:
    """Set the places where the files of a run are now.

    Args:
        config: the configuration of the run, which is changed. A teacher's run that is not where it was is looked for beside ``folder``.
        paths: new paths by key, nested as in the configuration.
        folder: the run folder.

    Raises:
        ConfigError: the run has no such key.
    """
    for key, value in leaves(paths):
        known = OmegaConf.select(config, key) is not None or key == "data.cache"
        require(known, key, f"must be a path of the run {folder}, which has none there; leave it out", value)
        OmegaConf.update(config, key, str(Path(str(value)).expanduser().absolute()))
    if "distiller" in config and config.teacher_run is not None:
        before = Path(config.teacher_run)
        beside = folder.absolute().parents[1] / before.parent.name / before.name
        config.teacher_run = str(beside if not before.is_dir() and beside.is_dir() else before)
        config.paths = dict(paths)


def check_same_data(folder: Path, digests: Mapping[str, str]) -> None:
    """Check that the data are those that the run was trained on, wherever they are now.

    Raises:
        RunFolderError: the content of a data set or file is another one.
    """
    try:
        recorded = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"environment.json must record the data of the run, got {type(error).__name__} in {folder}") from error
    names = {*recorded, *digests} - ({"classes"} - recorded.keys())  # runs of an earlier fedkd do not record the names of classes
    if changed := [name for name in sorted(names) if recorded.get(name) != digests.get(name)]:
        keys = "data.root=FOLDER (partition.path=FILE, systems.trace=FILE) names them"
        raise RunFolderError(f"teacher_run must find the data of the run {folder}, got other content of {', '.join(changed)}; {keys}")


def is_federated(config: DictConfig) -> bool:
    """Whether the configuration is that of a federated run. False for a distillation."""
    return "strategy" in config


def pooled_data(simulation: Simulation) -> tuple[Task, Examples, Examples]:
    """The task of a federated run, the training images that any client has in any round, and the global test set."""
    views, last = simulation.client_data.views, simulation.at(simulation.config.rounds)
    held = np.concatenate((simulation.partition if views is None else views.union()).train)
    indices = np.unique(held) if simulation.phases else np.sort(held)  # clients may have the same example in two views
    train = replace(simulation.train.subset(indices), digest=simulation.hash, left_out=simulation.train.left_out)
    return last.task, train, simulation.global_test


def federated_teacher(folder: Path, config: DictConfig, kind: str) -> Teacher:
    """The teacher that a federated run provides.

    Args:
        folder: the run folder.
        config: its configuration.
        kind: ``global_model`` or ``client_ensemble``.

    Raises:
        ConfigError: the run's strategy has no such model.
    """
    simulation = build_simulation(OmegaConf.to_yaml(config, resolve=True))
    strategy, last = simulation.flower_strategy, read_checkpoint(folder)
    if not isinstance(strategy, Strategy):
        rule = "must be a run of one of fedkd's strategies, because Flower's own strategies keep no state"
        raise ConfigError(f"teacher_run {rule}, got {config.strategy['_target_']!r}")
    server = replace(simulation.federation().server, client_states=last.client_states)
    predictor: Callable[[Tensor], Any] | None
    if kind == "client_ensemble":
        predictor, missing = find_client_ensemble(strategy, server, last.state), "clients' models on the server (fedensemble, dense)"
    else:
        predictor, missing = strategy.global_model(server, last.state), "a global model"
    if predictor is None:
        name = config.choices.get("strategy", config.strategy["_target_"])
        raise ConfigError(f"teacher_run must be a run of a strategy that has {missing}, got {f'{folder} of {name}'!r}")
    return fixed_teacher(StudentModule(as_module(predictor)))


def find_client_ensemble(strategy: Strategy, server: Server, state: State) -> Ensemble | None:
    """The ensemble of the clients' models that ``state`` holds. None if the strategy keeps no clients' models on the server."""
    candidates = (
        strategy.client_ensemble(server, state),
        strategy.extra_models(server, state).get("ensemble_test_accuracy"),
        strategy.global_model(server, state),
    )
    return next((model for model in candidates if isinstance(model, Ensemble)), None)


def as_module(predictor: object) -> nn.Module:
    """A network, or an ensemble as one network."""
    if isinstance(predictor, Ensemble):
        weights = [float(weight) for weight in predictor.weights]
        return EnsembleModel([as_module(member) for member in predictor.members], weights if len(set(weights)) > 1 else None)
    assert isinstance(predictor, nn.Module), "a global model is a network or an ensemble"
    return predictor


def fixed_teacher(module: StudentModule) -> Teacher:
    """A teacher with the current parameters of ``module``."""
    return Teacher(module.eval(), {key: value.clone() for key, value in snapshot(module).items()})


def tensors_digest(tensors: Tensors) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of all values of ``tensors``."""
    content = hashlib.sha256()
    for key in sorted(tensors):
        content.update(key.encode() + tensors[key].detach().cpu().numpy().tobytes())
    return content.hexdigest()[:16]
