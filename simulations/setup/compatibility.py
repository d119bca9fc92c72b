"""Checks that the parts of a configuration fit together, made before anything is trained."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from omegaconf import DictConfig
from torch import nn

from fedkd.config.build import build, call_part
from fedkd.errors import ConfigError, require
from fedkd.federation.aggregators import Mean
from fedkd.federation.server_optimizers import NoServerOptimizer
from fedkd.federation.system_heterogeneity import HOMOGENEOUS, Devices, Systems, make_devices
from fedkd.seed import Seed
from fedkd.strategy import Strategy
from fedkd.training.functional_model import call_with
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Task
from simulations.setup.clients import ClientData, Network
from simulations.setup.strategy_table import strategies_for, strategies_with_model_heterogeneity, takes


def build_strategy(config: DictConfig) -> FlowerStrategy:
    """The strategy of a run, with its aggregator and server optimizer.

    Raises:
        ConfigError: a part is wrong, or the aggregator or the server optimizer does not fit the strategy.
    """
    strategy = build(config, "strategy")
    is_strategy = isinstance(strategy, FlowerStrategy)
    require(is_strategy, "strategy._target_", "must be a strategy of fedkd or Flower", config.strategy["_target_"])
    name = config.choices.get("strategy", config.strategy["_target_"])
    for part, neutral in (("aggregator", Mean), ("server_optimizer", NoServerOptimizer)):
        found = build(config, part) if config.get(part) else neutral()
        option = config.choices.get(part, type(found).__name__)
        if isinstance(strategy, Strategy):
            fits = isinstance(found, neutral) or ("model" in strategy.broadcast_parts and strategy.averages_models)
            require(fits, part, f"must be the default with strategy {name}, whose server averages no models", option)
            setattr(strategy, part, found)
        else:
            rule = f"must be the default with {type(strategy).__name__}, which aggregates itself"
            require(isinstance(found, neutral), part, rule, option)
    if isinstance(strategy, Strategy):
        call_part("aggregator", strategy.aggregator.check_cohort, config.clients_per_round)
    return strategy


def make_run_devices(config: DictConfig, strategy: FlowerStrategy, systems: Systems, num_examples: Sequence[int], seed: Seed) -> Devices:
    """The devices of all clients.

    Args:
        config: the resolved configuration of the run.
        strategy: the strategy of the run.
        systems: the rules of client sampling and system heterogeneity.
        num_examples: number of training examples of each client [K].
        seed: seed of the run.

    Raises:
        ConfigError: the rules do not fit the run. Strategies of Flower allow the default rules only.
    """
    if not isinstance(strategy, Strategy):
        for name in ("client_sampling", "dropout_rate", "straggler_rate", "deadline", "num_new_clients"):
            value, default = getattr(systems, name), getattr(HOMOGENEOUS, name)
            allowed = "null" if default is None else default
            rule = f"must be {allowed} with {type(strategy).__name__}, which chooses clients itself (or use another strategy)"
            require(value == default, f"systems.{name}", rule, value)
    num_trainable = sum(number > 0 for number in num_examples)
    rule = f"must be at most the number of clients with training examples ({num_trainable} of {len(num_examples)})"
    if not isinstance(strategy, Strategy):  # it would wait without end for more
        needed = getattr(strategy, "min_available_nodes", 0)
        require(needed <= num_trainable, "strategy.min_available_nodes", rule, needed)
    require(config.clients_per_round <= num_trainable, "clients_per_round", rule, config.clients_per_round)
    workloads, drop_last = client_workloads(config, num_examples), drops_last(config)
    arguments = (systems, seed, workloads, num_examples, config.clients_per_round, config.rounds, drop_last)
    return call_part("systems", make_devices, *arguments)


def check_phases(config: DictConfig, strategy: FlowerStrategy, systems: Systems, client_data: ClientData, seed: Seed) -> None:
    """Reject a drift that the strategy cannot follow, or that leaves too few clients with training examples in a phase.

    A client without training examples in a phase does not take part in it.

    Raises:
        ConfigError: naming the first round of the phase.
    """
    views = client_data.views
    if views is None or not views.phases:
        return
    name = config.choices.get("drift", config.drift["_target_"])
    rule = f"must be none with {type(strategy).__name__}, whose rounds are those of Flower's own loop (or use a strategy of fedkd)"
    require(isinstance(strategy, Strategy), "drift", rule, name)
    sizes = [[len(indices) for indices in views.partition(number).train] for number in range(len(views.phases))]
    for phase, numbers in zip(views.phases, sizes):
        try:
            make_run_devices(config, strategy, systems, numbers, seed)
        except ConfigError as error:
            raise ConfigError(f"{error} (drift: from round {phase.first_round} on)") from error
    rule = "must be 0 where a drift leaves a client without training examples for a time, as new clients are drawn among those with some"
    same = all([n > 0 for n in numbers] == [n > 0 for n in sizes[0]] for numbers in sizes)
    require(same or systems.num_new_clients == 0, "systems.num_new_clients", rule, systems.num_new_clients)


def devices_of_sizes(config: DictConfig, devices: Devices, num_examples: Sequence[int]) -> Devices:
    """The same devices where the clients have other numbers of training examples [K]."""
    return replace(devices, workloads=client_workloads(config, num_examples), num_examples=num_examples)


def client_workloads(config: DictConfig, num_examples: Sequence[int]) -> list[tuple[int, int]]:
    """Batch size, and number of local steps in a round without stragglers, of each client [K]."""
    batch_sizes, drop_last = [min(config.batch_size, number) for number in num_examples], drops_last(config)
    passes = [number // max(size, 1) if drop_last else -(-number // max(size, 1)) for number, size in zip(num_examples, batch_sizes)]
    return [(size, config.local_steps or config.local_epochs * steps) for size, steps in zip(batch_sizes, passes)]


def drops_last(config: DictConfig) -> bool:
    """Whether the last, incomplete batch of a pass is left out: with ``drop_last``, and where ``local_steps`` is set."""
    return config.drop_last or config.local_epochs is None


def check_compatibility(
    config: DictConfig, strategy: FlowerStrategy, optimizer: OptimizerFactory, networks: Sequence[Network], client_data: ClientData
) -> None:
    """Reject combinations of parts that would fail later or have no meaning.

    Raises:
        ConfigError: a client has too few examples, public data is missing, or the strategy does not support the clients' networks or
            their optimizer.
    """
    name = config.choices.get("strategy", config.strategy["_target_"])
    phases = range(1) if client_data.views is None else range(len(client_data.views.phases) or 1)
    for partition in [client_data.partition] if client_data.views is None else map(client_data.views.partition, phases):
        check_single_examples(config, [len(indices) for indices in partition.train], networks)
    if isinstance(strategy, Strategy) and strategy.needs_public_data and client_data.public_data is None:
        rule = f"must be a data set for strategy {name}, which distills on public data (held_out, client_images, other_dataset or noise)"
        raise ConfigError(f"public_data {rule}, got none")
    if isinstance(strategy, Strategy):
        strategy.check_optimizer(optimizer([torch.zeros(1, requires_grad=True)]))
        for network in {network.name: network for network in networks}.values():
            call_part("strategy", strategy.check_network, network.model)
    heterogeneity = strategy.model_heterogeneity if isinstance(strategy, Strategy) else "none"
    check_model_heterogeneity(name, heterogeneity, {network.name: network.model.embedding_size for network in networks})


def check_task(config: DictConfig, strategy: FlowerStrategy, task: Task) -> None:
    """Reject a task on which the strategy cannot train.

    Raises:
        ConfigError: naming the strategies that can.
    """
    if not isinstance(strategy, Strategy) or takes(strategy, task.input, task.target):
        return
    reasons = [] if task.input in strategy.inputs else ["which makes images"]
    reasons += [] if task.target in strategy.targets else [f"which learns by {' or '.join(strategy.targets)}"]
    name = config.choices.get("strategy", config.strategy["_target_"])
    raise ConfigError(
        f"strategy must be one that trains on {task.input} with the target {task.target}, got {name}, {' and '.join(reasons)}; "
        f"use one of {', '.join(strategies_for(task))}"
    )


def check_generator(key: str, generator: Callable[..., nn.Module] | None, task: Task, embedding_size: int) -> None:
    """Build a generator once and let it make two examples, so that wrong values are refused before any training.

    Args:
        key: its place in the configuration.
        generator: ``task, ... -> module(noise, y)``; None where the part has no generator.
        task: the classification task.
        embedding_size: D of the classifiers.

    Raises:
        ConfigError: the generator refuses a value, or cannot be run.
    """
    if generator is None:
        return
    images = getattr(getattr(generator, "func", generator), "output_kind", "images") == "images"
    with Seed(0).globally(), torch.no_grad():  # the global generators are not advanced
        module = call_part(key, generator, task) if images else call_part(key, generator, task, embedding_size)
        call_part(key, module, torch.zeros(2, module.noise_size), torch.zeros(2, dtype=torch.long))


def check_single_examples(config: DictConfig, num_examples: Sequence[int], networks: Sequence[Network]) -> None:
    """Reject batches of one example where a BatchNorm layer of the client's network cannot take them.

    Raises:
        ConfigError: naming the client.
    """
    refusing: dict[str, bool] = {}
    for client, (number, network) in enumerate(zip(num_examples, networks)):
        is_rest = not drops_last(config) and number % config.batch_size == 1
        if number == 0 or not (number == 1 or config.batch_size == 1 or is_rest):
            continue
        if network.name not in refusing:
            refusing[network.name] = not accepts_one_example(network)
        if not refusing[network.name]:
            continue
        if number == 1:
            rule = "must leave every client two training examples for BatchNorm (min_size=2, fewer clients, less held out, or model=mlp)"
            raise ConfigError(f"partition {rule}, got 'client {client} with 1'")
        key, rule = "batch_size", "must be at least 2 for this network, as BatchNorm cannot take one example"
        if config.batch_size > 1:
            key, rule = "drop_last", "must be true, or batch_size another, for a batch of one example, which BatchNorm cannot take"
        require(False, key, rule, f"client {client} with {number} examples and batch_size {config.batch_size}")


def accepts_one_example(network: Network) -> bool:
    """Whether a network in train mode can read one image."""
    model = copy.deepcopy(network.model).train()
    tensors = {key: value.clone() for key, value in network.initial.items()}
    example = next(value for value in tensors.values() if value.is_floating_point())
    try:
        with torch.no_grad(), Seed(0).globally():
            call_with(model, tensors, model.task.inputs(1, example.dtype, example.device))
    except ValueError as error:
        return "more than 1 value per channel" not in str(error)
    return True


def check_model_heterogeneity(name: str, heterogeneity: str, embedding_sizes: dict[str, int]) -> None:
    """Reject clients with different networks where the strategy does not support them.

    Args:
        name: the strategy.
        heterogeneity: what the strategy supports: ``none``, ``same_embedding_size`` or ``any``.
        embedding_sizes: the embedding size of each network by name.

    Raises:
        ConfigError: naming the strategies that support such networks.
    """
    if len(embedding_sizes) == 1:
        return
    if heterogeneity == "none":
        any_networks, head_only = strategies_with_model_heterogeneity()
        advice = ", or share the head only (strategy.shared_layers=head)" if name in head_only else ""
        raise ConfigError(
            f"model must be one network for all clients with strategy {name}, which averages whole models, "
            f"got {', '.join(embedding_sizes)}; choose one network{advice}, or another strategy: {', '.join(any_networks)}; "
            f"with strategy.shared_layers=head also {', '.join(head_only)}"
        )
    if heterogeneity == "same_embedding_size" and len(set(embedding_sizes.values())) > 1:
        sizes = ", ".join(f"{network} {size}" for network, size in embedding_sizes.items())
        rule = f"must have the same embedding size for all networks, as strategy {name} shares the layers after the embedding"
        raise ConfigError(f"model.networks {rule}, got {sizes}")
