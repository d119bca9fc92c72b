"""One step of every architecture of a run on two examples, before the first round. What cannot train is refused in one line."""

import sys
from collections.abc import Iterable
from dataclasses import replace

import torch

from fedkd.errors import ConfigError
from fedkd.federation.client import Client
from fedkd.models.construction import in_one_line
from fedkd.strategy import Strategy
from fedkd.training.functional_model import load, trained_names
from fedkd.types import State
from simulations.distillation.export import export_obstacle
from simulations.engine.client_work import client_strategy_of_flower
from simulations.setup.simulation import Simulation


def check_training(simulation: Simulation) -> None:
    """Evaluate and train one client of each architecture, for one step on two examples. No random stream is changed.

    A network of the user's that ``torch.export`` cannot read can train. A warning says that it has no program.

    Raises:
        ConfigError: a network cannot be evaluated or trained.
    """
    sizes = [len(examples) for examples in simulation.client_data.train]
    clients = {network.name: number for number, network in reversed(list(enumerate(simulation.networks))) if sizes[number] > 0}
    with (simulation.seed / "dry").globally():
        for number in clients.values():
            client = tiny_client(simulation, number)
            strategy = simulation.config.choices.get("strategy", simulation.config.strategy["_target_"])
            rule, where = f"model must be a network that strategy {strategy} can", f" on {len(client.data)} examples"
            with in_one_line(f"{rule} evaluate, got {client.architecture}", where):
                check_output(client)
            with in_one_line(f"{rule} train, got {client.architecture}", where):
                check_step(simulation, client)
            warn_of_export(client)


def tiny_client(simulation: Simulation, number: int) -> Client:
    """A client of round 1 with one local step on two of its examples, or on one if it has no more. Nothing is compiled."""
    client = simulation.client(number, 1)
    examples = client.data.subset(torch.arange(min(2, len(client.data))))
    return replace(client, data=examples, num_steps=1, execution=replace(client.execution, compile=False))


def initial_broadcast(simulation: Simulation) -> tuple[Strategy, State]:
    """The strategy that the clients follow, and its broadcast in the first round. Clients of Flower's strategies train as in FedAvg."""
    strategy = simulation.flower_strategy
    if not isinstance(strategy, Strategy):
        return client_strategy_of_flower(), {"model": simulation.initial}
    state = strategy.init_server(simulation.federation().server)
    return strategy, {part: tensors for part, tensors in state.items() if part in strategy.broadcast_parts}


def check_output(client: Client) -> None:
    """Check what a network returns in eval mode, for two examples and for one.

    Raises:
        ConfigError: the output has another type or shape than an Output.
    """
    load(client.model, client.initial)
    model, classes, size = client.model.eval(), client.task.num_classes, client.model.embedding_size
    positions = client.task.positions
    for number in (2, 1):
        with torch.no_grad():
            output = model(client.data.images(torch.zeros(number, dtype=torch.int64, device=client.device), client.dtype))
        got = {name: list(getattr(output, name).shape) for name in ("logits", "embedding") if hasattr(output, name)}
        if got != (expected := {"logits": [number, *positions, classes], "embedding": [number, *positions, size]}):
            kind = f"{got or type(output).__name__} from {client.architecture}"
            raise ConfigError(
                f"model must return an Output with the shapes {expected} for {number} example{'s' if number > 1 else ''}, got {kind}"
            )


def check_step(simulation: Simulation, client: Client) -> None:
    """Train a client for one step. A warning says that the head, which evaluations read, or that nothing is changed by it.

    Raises:
        ConfigError: the network has no parameter that is trained.
    """
    if not trained_names(client.model):
        raise ConfigError(f"model must have a parameter that is trained, got {client.architecture}, whose parameters are all frozen")
    strategy, broadcast = initial_broadcast(simulation)
    update, kept = strategy.train(client, broadcast, None, 1)
    parts, learned = (*update.state.values(), *kept.values()), trained_names(client.model)

    def all_equal(names: Iterable[str], tolerance: float = 0.0) -> bool:
        """No tensor of these names that the client sends or keeps has another value than before."""
        pairs = [(part[name], client.initial[name]) for part in parts for name in names if name in part]
        return all(after.shape != before.shape or torch.allclose(after, before, rtol=0, atol=tolerance) for after, before in pairs)

    head = [name for name in client.initial if name.startswith("head.")]
    if client.lr > 0 and head and strategy.trains_head and all_equal(head):
        name, of = type(simulation.flower_strategy).__name__, f"of {client.architecture}"
        found = f"do not train the head {of}, by which they are scored"
        if any(key in part for part in parts for key in learned) and all_equal(learned, 1e-12):
            found = f"change no parameter {of} in a step with the learning rate {client.lr:g}; a larger optimizer.lr may be needed"
        print(f"warning: clients of {name} {found}", file=sys.stderr)


def warn_of_export(client: Client) -> None:
    """Say which network of the user's ``torch.export`` cannot read. A run writes no program, so that it need not be refused."""
    if (reason := export_obstacle(client.model, client.task)) is not None:
        print(f"warning: {client.architecture} has no program when it is exported, as torch.export raises {reason}", file=sys.stderr)
