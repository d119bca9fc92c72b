"""What a finished run leaves for a student: its task and images, and the model, the ensemble or the student that it ended with."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fedkd.checkpoint import read_checkpoint, read_header
from fedkd.distillation.methods.base import StudentModule
from fedkd.errors import require
from fedkd.federation.server import Server
from fedkd.models.ensemble import Ensemble, EnsembleModel
from fedkd.strategy import Strategy
from fedkd.training.functional_model import snapshot
from fedkd.types import Examples, State, Task, Tensors
from simulations.overrides import extend_sys_path
from simulations.setup.simulation import Simulation, build_simulation


@dataclass(frozen=True)
class Teacher:
    """A network that knows: its form and its tensors."""

    learner: StudentModule
    tensors: Tensors


def config_of(folder: Path, server_round: int | None = None) -> DictConfig:
    """The configuration of the run in ``folder``, which is finished, or stands at ``server_round``.

    Raises:
        ConfigError: there is none, or it is not.
    """
    require((folder / "config.yaml").is_file(), "teacher_run", "must be a run folder (it holds config.yaml)", str(folder))
    header = read_header(folder)
    state = "nothing" if header is None else f"{header['round']} of {header['rounds']}"
    if server_round is not None:
        there = header is not None and header["round"] == server_round
        require(there, "round", f"must be that of the run's checkpoint ({state} done)", server_round)
    else:
        done = header is not None and bool(header["finished"])
        require(done, "teacher_run", f"must be finished; run the same command again to go on with it ({state} done)", str(folder))
    config = OmegaConf.create(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
    extend_sys_path(config.searchpath)
    return config


def is_federated(config: DictConfig) -> bool:
    """The configuration is of a federated run."""
    return "strategy" in config


def pooled(home: Simulation) -> tuple[Task, Examples, Examples]:
    """A federated run's task, all training images that its clients hold, and its test set."""
    held = np.sort(np.concatenate(home.partition.train))
    return home.task, replace(home.train.subset(held), digest=home.hash), home.test


def aggregated(folder: Path, config: DictConfig, of: str) -> Teacher:
    """The model, or the ensemble of clients, that a federated run ended with.

    Raises:
        ConfigError: its strategy has none.
    """
    home = build_simulation(OmegaConf.to_yaml(config, resolve=True))
    strategy, last = home.strategy, read_checkpoint(folder)
    require(
        isinstance(strategy, Strategy),
        "teacher_run",
        "must be of a strategy of fedkd's: Flower's own keep no state",
        config.strategy["_target_"],
    )
    server = replace(home.federation().server, memories=last.memories)
    model = strategy.global_model(server, last.state)
    if of == "client_ensemble":
        model = clients_ensemble(strategy, server, last.state)
    name = config.choices.get("strategy", config.strategy["_target_"])
    has = "clients' models on the server (fedensemble, dense)" if of == "client_ensemble" else "a global model"
    require(model is not None, "teacher_run", f"must be of a strategy that has {has}", f"{folder} of {name}")
    network = EnsembleModel(model.members) if isinstance(model, Ensemble) else model
    assert isinstance(network, nn.Module), "a model that predicts is a network"
    return holding(StudentModule(network))


def clients_ensemble(strategy: Strategy, server: Server, state: State) -> Ensemble | None:
    """The ensemble of the clients' models that ``state`` holds; None for a strategy that keeps none."""
    found = (
        strategy.client_ensemble(server, state),
        strategy.extra_models(server, state).get("ensemble_test_accuracy"),
        strategy.global_model(server, state),
    )
    return next((one for one in found if isinstance(one, Ensemble)), None)


def holding(learner: StudentModule) -> Teacher:
    """A network as it is."""
    return Teacher(learner.eval(), {key: value.clone() for key, value in snapshot(learner).items()})


def digest(tensors: Tensors) -> str:
    """Sixteen hexadecimal digits that stand for the numbers of ``tensors``."""
    content = hashlib.sha256()
    for key in sorted(tensors):
        content.update(key.encode() + tensors[key].detach().cpu().numpy().tobytes())
    return content.hexdigest()[:16]
