"""The model of a run as a network: the global model of a federated run, the model of a client, or the student of a distillation."""

import copy
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from fedkd.checkpoint import Checkpoint, read_checkpoint
from fedkd.config.build import OWN_PACKAGES, build, call_part
from fedkd.errors import ConfigError, RunFolderError, one_line
from fedkd.federation.aggregation import assemble_model
from fedkd.models.construction import make_classifier
from fedkd.strategy import Strategy
from fedkd.training.functional_model import load, submodule_tensors
from simulations.distillation.setup import make_setup
from simulations.distillation.teachers import as_module, is_federated
from simulations.overrides import extend_sys_path, search_path
from simulations.run_folder.data_record import read_task
from simulations.run_folder.stored_config import load_stored
from simulations.setup.placeholders import simulation_without_data
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
    config, last = read_config(folder, checkpoint), read_checkpoint(folder, checkpoint)
    try:
        if not is_federated(config):
            if client is not None:
                raise RunFolderError(f"client must be None for a distillation, whose model is its student, got {client!r} for {folder}")
            return _student(config, last, folder)
        simulation = networks_of_run(config, folder)
        if client is not None and _reads_data(simulation, last, client):
            simulation = build_simulation(OmegaConf.to_yaml(config, resolve=True))
    except ConfigError as error:
        raise RunFolderError(f"the configuration of {folder} must be one that can be built here: {error}") from error
    return _global_model(simulation, last, folder) if client is None else _client_model(simulation, last, client, folder)


def networks_of_run(config: DictConfig, folder: Path) -> Simulation:
    """The networks and the strategy of a federated run. The data are read only where the folder does not record what they are."""
    recorded = read_task(folder)
    return build_simulation(OmegaConf.to_yaml(config, resolve=True)) if recorded is None else simulation_without_data(config, *recorded)


def _reads_data(simulation: Simulation, last: Checkpoint, client: int) -> bool:
    """Whether the state of a client may be made from its data: it has not trained yet, and a strategy of the user's makes the state."""
    hook = getattr(type(simulation.flower_strategy), "init_client", None)
    return client not in last.client_states and hook is not None and hook.__module__.partition(".")[0] not in OWN_PACKAGES


def read_config(folder: Path, checkpoint: str = "checkpoint") -> DictConfig:
    """The configuration of a run with this checkpoint, for the CPU.

    Raises:
        RunFolderError: the folder is no run's, or lacks the checkpoint.
    """
    if not (folder / "config.yaml").is_file():
        raise RunFolderError(f"path must be a run folder (it holds config.yaml), got {str(folder)!r}")
    if not (folder / f"{checkpoint}.safetensors").is_file():
        remedy = "run it with the callback BestCheckpoint" if checkpoint != "checkpoint" else "run it for one round at least"
        raise RunFolderError(f"{folder} must hold {checkpoint}.safetensors, and does not; {remedy}")
    try:
        config = OmegaConf.create(load_stored(folder / "config.yaml"))
        config.device = "cpu"
        folders = search_path([])  # a folder that is someone else's names no code
        extend_sys_path([Path.cwd(), *folders])
        config.searchpath, config.allow_targets = list(map(str, folders)), allowed_targets(config, remembered(config), folders)
    except (OSError, ValueError, TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        raise RunFolderError(f"{folder / 'config.yaml'} must be the configuration of a run: {one_line(error)}") from error
    return config


def _student(config: DictConfig, last: Checkpoint, folder: Path) -> nn.Module:
    """The student of a distillation. Neither data nor teacher are needed where the folder records what they are."""
    recorded = read_task(folder)
    task = make_setup(config).task if recorded is None else recorded[0]
    student = call_part("student", make_classifier, build(config, "student"), task).to(dtype=dtype_of(config))
    load(student, submodule_tensors(last.state["learner"], "student"))
    return student.eval()


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
    weights = strategy.test_weights(client, broadcast, strategy._new_client_state(client) if state is None else state)
    model = copy.deepcopy(client.model)
    load(model, weights)
    return model.eval()
