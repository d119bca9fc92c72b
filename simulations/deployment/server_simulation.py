"""The simulation of a deployment's server, which holds no example of any client. Sizes and classes come from the nodes' reports."""

from collections.abc import Mapping

import numpy as np
import torch
from omegaconf import DictConfig

from fedkd.config.build import build, call_part, has_drift
from fedkd.distillation.public_data import ClientImages
from fedkd.errors import require
from fedkd.seed import Seed
from fedkd.strategy import Strategy
from fedkd.types import Examples, Partition, Task
from simulations.deployment.node_report import ClientReport
from simulations.overrides import extend_sys_path
from simulations.setup.clients import ClientData, make_networks, read_data
from simulations.setup.compatibility import build_strategy, check_compatibility, check_task, make_run_devices
from simulations.setup.simulation import Simulation, dtype_of


def check_deployment(config: DictConfig) -> None:
    """Reject what needs the clients' data on the server.

    Raises:
        ConfigError: naming the key.
    """
    here = "with engine=deployment, whose server holds no client's data"
    require(config.distill is None, "distill", f"must be null {here}; fedkd distill reads the run folder", config.distill)
    every = config.generator_diagnostics_every
    require(every is None, "generator_diagnostics_every", f"must be null {here}, and so cannot compare generated with real images", every)
    rule = "must be none with engine=deployment, where every node has one data set"
    require(not has_drift(config), "drift", rule, config.choices.get("drift", "another"))
    public = build(config, "public_data")
    made_here = public.held_out_fraction == 0 and not isinstance(public, ClientImages)
    name = config.choices.get("public_data", config.public_data["_target_"])
    require(made_here, "public_data", f"must be none, other_dataset or noise {here}", name)
    size = config.clients_per_vmap
    require(size in (1, "auto"), "clients_per_vmap", "must be 1 or auto with engine=deployment, where clients train one by one", size)
    held_out = config.engine.server_data and config.evaluation.split == "validation"
    rule = "must be false where evaluation.split=validation, as the held-out examples stay on the nodes"
    require(not held_out, "engine.server_data", rule, True)


def server_simulation(config: DictConfig, clients: Mapping[int, ClientReport], task: Task, scale: float) -> Simulation:
    """The simulation of the server.

    Every client has placeholders in place of its examples: patterns of as many images. They show what the strategy makes of data of this
    size, for checks before the first round and of the form of updates. Nothing that is learned depends on them.

    Args:
        config: the resolved configuration.
        clients: the reports of all clients 0..K-1.
        task: the task of the nodes.
        scale: the stored pixel that stands for 1.0.

    Raises:
        ConfigError: a value is wrong, or parts do not fit together.
    """
    extend_sys_path(config.searchpath)
    device, seed, reports = config.device, Seed(config.seed), [clients[client] for client in range(config.num_clients)]
    require(device == "cpu" or torch.cuda.is_available(), "device", "must be available on this machine (it has no GPU)", device)
    torch.set_num_threads(1)  # the number of threads changes rounding
    strategy, optimizer, systems = build_strategy(config), build(config, "optimizer"), build(config, "systems")
    check_task(config, strategy, task)
    present = {label for report in reports for label in report.classes}
    task = task.with_absent_classes(torch.tensor(sorted(present), dtype=torch.int64))
    images = placeholders(task, scale).to(device)
    train, test = ([report.num_train_examples for report in reports], [report.num_test_examples for report in reports])
    client_data = make_placeholder_data(config, task, images, train, test, seed)
    networks, server_network = make_networks(config, task, dtype_of(config), seed, strategy)
    check_compatibility(config, strategy, optimizer, networks, client_data)
    devices = make_run_devices(config, strategy, systems, train, seed)
    digests = {f"client_{client}": report.digest for client, report in enumerate(reports)}
    return Simulation(config, task, images, client_data, networks, server_network, strategy, optimizer, devices, sum(train), digests)


def placeholders(task: Task, scale: float) -> Examples:
    """A pattern for each class that has training examples."""
    labels, is_tokens = task.present, task.input == "tokens"
    values = torch.arange(len(labels) * int(np.prod(task.shape)), dtype=torch.int64)
    largest = min(17, len(task.vocabulary)) if is_tokens else 17
    pixels = (values * 2654435761 % 4294967296 // 65536 % largest).to(torch.uint8)  # spread, and in the range of every scale
    y = labels if task.has_labels else task.targets(len(labels))
    return Examples(pixels.view(len(labels), *task.shape), y, scale, task.mean, task.std, tokens=is_tokens)


def make_placeholder_data(config: DictConfig, task: Task, images: Examples, train: list[int], test: list[int], seed: Seed) -> ClientData:
    """Placeholders for the data of all clients, and what the server has itself: public data, and a test set with ``engine.server_data``.

    Args:
        config: the resolved configuration.
        task: the task of the nodes.
        images: the placeholders.
        train: number of training examples of each client [K].
        test: number of local test examples of each client [K].
        seed: seed of the run.

    Raises:
        ConfigError: data of the server cannot be read, or are of another task.
    """
    nothing = images.subset(torch.zeros(0, dtype=torch.int64))
    public = call_part("public_data", build(config, "public_data"), task, nothing, images, seed / "public")
    global_test = nothing
    if config.engine.server_data:
        own, _, global_test = read_data(config)
        rule = f"must be a data set of the nodes' task ({task.name}, {task.shape}, {task.num_classes} classes) for engine.server_data=true"
        same = all(
            getattr(own, name) == getattr(task, name) for name in ("shape", "num_classes", "class_names", "input", "target", "vocabulary")
        )
        require(same, "data", rule, f"{own.name}, {own.shape}, {own.num_classes} classes")
        global_test = global_test.to(config.device)
    sizes = Partition([np.arange(number) for number in train], [np.arange(number) for number in test])
    own_train, own_test = ([images.subset(index % len(images)) for index in part] for part in (sizes.train, sizes.test))
    public = None if public is None else public.without_labels()
    return ClientData(sizes, own_train, own_test, nothing, global_test, public, None)


def unavailable(simulation: Simulation) -> list[str]:
    """One line for each thing that a simulator could do and the server of this deployment cannot."""
    config, strategy = simulation.config, simulation.flower_strategy
    name = config.choices.get("strategy", config.strategy["_target_"])
    lines = []
    if len(simulation.global_test) == 0:
        lines.append("the global test, as the server has no test data (engine.server_data=true reads those of data.root on the server)")
    elif not simulation.can_test_globally:
        lines.append(f"the global test, as BatchNorm statistics or layers of {name} stay with the clients (strategy.batchnorm=averaged)")
    if not isinstance(strategy, Strategy) or not strategy.clients_evaluate:
        lines.append(f"the local test, as the server of {name} tests on the clients' test sets, which stay on the nodes")
    if config.validation_fraction > 0 and config.evaluation.split == "test":
        lines.append("early stopping on held-out examples, which stay on the nodes")
    return [f"not available with engine=deployment: {line}" for line in lines]
