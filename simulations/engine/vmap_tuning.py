"""``clients_per_vmap=auto``: times a few training steps of this run, and chooses how many clients a worker trains as one program.

The overhead of each operation dominates the time of small networks, which therefore train several times faster together. The arithmetic
dominates the time of wide networks, which train slower together.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from fedkd.federation.client import Client
from fedkd.models.construction import first_line
from fedkd.training.vectorized_layers import trains_alone
from fedkd.types import State
from simulations.process import configure_process
from simulations.setup.simulation import Simulation

CANDIDATES = (1, 5, 10, 20)
"""The numbers of clients that are tried."""

NUM_STEPS = 3
"""Training steps of one timing."""

NUM_REPETITIONS = 3
"""Timings of each candidate. Candidates are timed in turn, and the median counts."""

MIN_SPEEDUP = 1.05
"""A larger number of clients is chosen only if it is faster by this factor."""


def choose_clients_per_vmap(simulation: Simulation, num_workers: int) -> tuple[int, dict[str, float]]:
    """The number of clients that a worker trains as one program.

    Every candidate leaves work for all workers. The timings use clients of the largest group with the same architecture and batch size.

    Args:
        simulation: the simulation of the run.
        num_workers: number of workers among which the clients of a round are divided.

    Returns:
        The number of clients, and the milliseconds per client and step of each candidate. There are no timings if 1 is the only candidate.
    """
    configure_process()
    clients_per_worker = -(-simulation.config.clients_per_round // num_workers)
    clients = largest_group(simulation)
    candidates = [number for number in CANDIDATES if number == 1 or number <= min(clients_per_worker, len(clients))]
    if len(candidates) == 1 or trains_alone(clients[0].model):
        return 1, {}
    strategy = simulation.strategy
    state = strategy.init_server(simulation.federation().server)
    broadcast = {part: tensors for part, tensors in state.items() if part in strategy.broadcast_parts}
    milliseconds: dict[int, list[float]] = {number: [] for number in candidates}
    for repetition in range(1 + NUM_REPETITIONS):
        for number in candidates:
            per_step = time_steps(simulation, clients[:number], broadcast) / (NUM_STEPS * number) * 1e3
            if repetition > 0:  # the first one is a warm-up
                milliseconds[number].append(per_step)
    median = {number: statistics.median(times) for number, times in milliseconds.items()}
    chosen = 1
    for number in candidates[1:]:
        if median[number] * MIN_SPEEDUP < median[chosen]:
            chosen = number
    return chosen, {str(number): round(value, 4) for number, value in median.items()}


def vmap_obstacle(simulation: Simulation) -> str | None:
    """The network that ``torch.vmap`` cannot batch with the run's loss, and why; None if there is none.

    Two copies of one client train for one step on two examples. Networks with dropout or recurrence train one client at a time anyway.
    """
    configure_process()
    strategy, config = simulation.strategy, simulation.config
    if config.clients_per_vmap == 1 or config.clients_per_round == 1:
        return None
    sizes = [len(examples) for examples in simulation.client_data.train]
    clients = {network.name: number for number, network in enumerate(simulation.networks) if sizes[number] > 0}
    state = strategy.init_server(simulation.federation().server)
    broadcast = {part: tensors for part, tensors in state.items() if part in strategy.broadcast_parts}
    for name, number in clients.items():
        client = simulation.client(number, 1)
        examples = client.data.subset(torch.arange(min(2, len(client.data))))
        client = replace(client, data=examples, num_steps=1, execution=replace(client.execution, compile=False))
        if trains_alone(client.model):
            continue
        try:
            with (simulation.seed / "dry").globally():
                strategy.train_clients([client, client], broadcast, [None, None], 1)
        except FloatingPointError:
            continue
        except Exception as error:
            name_of_strategy = config.choices.get("strategy", config.strategy["_target_"])
            return f"{name} with strategy {name_of_strategy} ({type(error).__name__}: {first_line(error)})"
    return None


def largest_group(simulation: Simulation) -> list[Client]:
    """Clients with the most common architecture and batch size, as many as the largest candidate needs, with few local steps."""
    trainable = [client for client in range(simulation.config.num_clients) if simulation.workload(client)[0] > 0]
    groups = [simulation.vmap_group(client) for client in trainable]
    largest = max(sorted(set(groups)), key=groups.count)
    members = [client for client, group in zip(trainable, groups) if group == largest][: max(CANDIDATES)]
    return [replace(simulation.client(client, 1), num_steps=NUM_STEPS) for client in members]


def time_steps(simulation: Simulation, clients: Sequence[Client], broadcast: State) -> float:
    """The wall-clock seconds in which ``clients`` train as one program, or in which one client trains alone."""
    begin = time.perf_counter()
    if len(clients) == 1:
        simulation.strategy.train(clients[0], broadcast, None, 1)
    else:
        simulation.strategy.train_clients(clients, broadcast, [None] * len(clients), 1)
    return time.perf_counter() - begin
