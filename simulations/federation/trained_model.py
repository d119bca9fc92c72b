"""The model of a run as a network: the global model of a federated run, the model of a client, or the student of a distillation."""

import copy
import json
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file
from torch import nn
from yaml import YAMLError

from fedkd.checkpoint import Checkpoint, read_checkpoint
from fedkd.config.build import build, call_part
from fedkd.errors import ConfigError, RunFolderError, one_line
from fedkd.federation.aggregation import assemble_model
from fedkd.models.construction import make_classifier
from fedkd.strategy import Strategy
from fedkd.training.functional_model import load
from fedkd.types import Task
from simulations.distillation.setup import make_setup
from simulations.distillation.teachers import as_module, is_federated
from simulations.overrides import extend_sys_path, search_path
from simulations.setup.simulation import Simulation, build_simulation, dtype_of
from simulations.user_modules import allowed_targets, remembered


def load_model(folder: Path, client: int | None = None, checkpoint: str = "checkpoint") -> nn.Module:
    """The network that a checkpoint of a run folder holds, on the CPU and in eval mode.

    Args:
        folder: of a federated run or a distillation, which may be unfinished.
        client: None for the global model (or the student); k in 0..N-1 for the model that client k would use: its own parameters over the
            broadcast ones.
        checkpoint: name of the checkpoint without suffix: ``checkpoint`` is the last one, ``best_checkpoint`` that of the best round.

    Returns:
        A network of its own: changing it changes nothing else. It maps images [B, channels, height, width], scaled as in the run, to an
        :class:`fedkd.types.Output`.

    Raises:
        RunFolderError: the folder or the checkpoint is missing or corrupt, or the run has no such model.
    """
    config, last = _read(folder, checkpoint)
    try:
        if not is_federated(config):
            if client is not None:
                raise RunFolderError(f"client must be None for a distillation, whose model is its student, got {client!r} for {folder}")
            return _student(config, last, folder, checkpoint)
        simulation = build_simulation(OmegaConf.to_yaml(config, resolve=True))
    except ConfigError as error:
        raise RunFolderError(f"the configuration of {folder} must be one that can be built here: {error}") from error
    return _global_model(simulation, last, folder) if client is None else _client_model(simulation, last, client, folder)


def _read(folder: Path, checkpoint: str) -> tuple[DictConfig, Checkpoint]:
    """The configuration, for the CPU, and the checkpoint."""
    if not (folder / "config.yaml").is_file():
        raise RunFolderError(f"path must be a run folder (it holds config.yaml), got {str(folder)!r}")
    if not (folder / f"{checkpoint}.safetensors").is_file():
        remedy = "run it with the callback BestCheckpoint" if checkpoint != "checkpoint" else "run it for one round at least"
        raise RunFolderError(f"{folder} must hold {checkpoint}.safetensors, and does not; {remedy}")
    try:
        config = OmegaConf.create(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True))
        assert isinstance(config, DictConfig), "config.yaml holds keys"
        config.device = "cpu"
        folders = search_path([])  # a folder that is someone else's names no code
        extend_sys_path([Path.cwd(), *folders])
        config.searchpath, config.allow_targets = list(map(str, folders)), allowed_targets(config, remembered(config), folders)
    except (OSError, ValueError, TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        raise RunFolderError(f"{folder / 'config.yaml'} must be the configuration of a run: {one_line(error)}") from error
    return config, read_checkpoint(folder, checkpoint)


def _student(config: DictConfig, last: Checkpoint, folder: Path, checkpoint: str) -> nn.Module:
    """The student of a distillation. A finished one describes itself in ``student.json``; then neither data nor teacher are needed."""
    described = folder / "student.json"
    if checkpoint == "checkpoint" and described.is_file() and (folder / "student.safetensors").is_file():
        about = json.loads(described.read_text(encoding="utf-8"))
        task = Task(
            "student", tuple(about["shape"]), about["num_classes"], tuple(about["class_names"]), tuple(about["mean"]), tuple(about["std"])
        )
        factory = build(OmegaConf.create({"student": about["network"]}), "student")
        student = call_part("student", make_classifier, factory, task).to(dtype=dtype_of(config))
        load(student, load_file(folder / "student.safetensors"))
        return student.eval()
    setup = make_setup(config)
    network, tensors = setup.distiller.networks(setup.learner, last.state["learner"])["student"]
    load(network, tensors)
    return copy.deepcopy(network).eval()


def _global_model(simulation: Simulation, last: Checkpoint, folder: Path) -> nn.Module:
    """What the global test measures."""
    strategy = simulation.flower_strategy
    if not isinstance(strategy, Strategy):  # Flower's own: its last model is all that is kept
        return assemble_model(simulation.model, simulation.initial, last.state["model"]).eval()
    server = replace(simulation.federation().server, client_states=last.client_states)
    model = strategy.global_model(server, last.state)
    if model is None:
        name = simulation.config.choices.get("strategy", simulation.config.strategy["_target_"])
        raise RunFolderError(f"{folder} has no global model, as strategy {name} has none; client=0 gives that of the first client")
    return copy.deepcopy(as_module(model)).eval()


def _client_model(simulation: Simulation, last: Checkpoint, number: int, folder: Path) -> nn.Module:
    """The model with which a client would begin the next round, and which its local test measures."""
    strategy, clients = simulation.flower_strategy, simulation.config.num_clients
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < clients:
        raise RunFolderError(f"client must be a number in 0..{clients - 1}, got {number!r} for {folder}")
    if not isinstance(strategy, Strategy):
        raise RunFolderError(f"client must be None for Flower's own strategies, whose clients keep no model, got {number} for {folder}")
    client = simulation.client(number, last.round)
    broadcast = {part: last.state[part] for part in strategy.broadcast_parts if part in last.state}
    state = last.client_states.get(number)
    weights = strategy.initial_weights(client, broadcast, strategy._new_client_state(client) if state is None else state)
    model = copy.deepcopy(client.model)
    load(model, weights)
    return model.eval()
