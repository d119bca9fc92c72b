"""A simulation without the clients' data, for models that a run has trained."""

import numpy as np
import torch
from omegaconf import DictConfig

from fedkd.config.build import build
from fedkd.federation.system_heterogeneity import Devices
from fedkd.seed import Seed
from fedkd.types import Examples, Partition, Task
from simulations.overrides import extend_sys_path
from simulations.setup.clients import ClientData, make_networks
from simulations.setup.compatibility import build_strategy
from simulations.setup.simulation import Simulation, dtype_of


def simulation_without_data(config: DictConfig, task: Task, scale: float) -> Simulation:
    """The networks and the strategy of a run, for models that it has trained. Every client has one black image in place of its data.

    Args:
        config: the resolved configuration of the run.
        task: its task.
        scale: the stored pixel that stands for 1.0.

    Raises:
        ConfigError: a part of the run cannot be built here.
    """
    extend_sys_path(config.searchpath)
    seed, number = Seed(config.seed), config.num_clients
    strategy, optimizer, systems = build_strategy(config), build(config, "optimizer"), build(config, "systems")
    black = Examples(task.inputs(1, torch.uint8), task.targets(1), scale, task.mean, task.std, tokens=task.input == "tokens")
    none = Partition([np.zeros(0, np.int64)] * number, [np.zeros(0, np.int64)] * number)
    client_data = ClientData(none, [black] * number, [black] * number, black, black, None, None)
    networks, server_network = make_networks(config, task, dtype_of(config), seed, strategy)
    devices = Devices(systems, seed, [(1, 1)] * number, [1] * number)
    return Simulation(config, task, black, client_data, networks, server_network, strategy, optimizer, devices, number)
