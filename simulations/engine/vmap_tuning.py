"""``clients_per_vmap=auto``: which number of clients trains fastest as one tensor program, by timing some steps of this very run.

Small networks are bound by what lies between operations and gain several times; wide ones are bound by arithmetic, and lose.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

from fedkd.federation.client import Client
from fedkd.training.vectorized_layers import has_randomness
from fedkd.types import State
from simulations.process import configure_process
from simulations.setup.simulation import Simulation

CANDIDATES = (1, 5, 10, 20)

STEPS, REPETITIONS, GAIN = 3, 3, 1.05
"""Steps of one timing; timings of each candidate, one after the other in turn; how much faster a larger number must be to be kept."""


def choose_clients_per_vmap(home: Simulation, num_workers: int) -> tuple[int, dict[str, float]]:
    """The number of clients to train at once, and milliseconds per client and step of each number that was tried.

    Every candidate leaves work for all workers. Clients of the largest group alike in batch size stand for all.

    Args:
        home: the run.
        num_workers: among whom a round's clients are shared.
    """
    configure_process()
    share = -(-home.config.clients_per_round // num_workers)
    clients = alike(home)
    numbers = [n for n in CANDIDATES if n == 1 or n <= min(share, len(clients))]
    if len(numbers) == 1 or has_randomness(clients[0].model):
        return 1, {}
    shared = {
        part: tensors
        for part, tensors in home.strategy.init_server(home.federation().server).items()
        if part in home.strategy.broadcast_parts
    }
    milliseconds: dict[int, list[float]] = {number: [] for number in numbers}
    for repetition in range(1 + REPETITIONS):
        for number in numbers:
            spent = seconds(home, clients[:number], shared) / (STEPS * number) * 1e3
            if repetition > 0:  # the first warms up
                milliseconds[number].append(spent)
    median = {number: statistics.median(times) for number, times in milliseconds.items()}
    chosen = 1
    for number in numbers[1:]:
        if median[number] * GAIN < median[chosen]:
            chosen = number
    return chosen, {str(number): round(value, 4) for number, value in median.items()}


def alike(home: Simulation) -> list[Client]:
    """Clients of the commonest network and batch size, with few steps to do."""
    kinds = [home.kind(number) for number in range(home.config.num_clients)]
    kind = max(sorted(set(kinds)), key=kinds.count)
    numbers = [number for number in range(home.config.num_clients) if kinds[number] == kind][: max(CANDIDATES)]
    return [replace(home.client(number, 1), num_steps=STEPS) for number in numbers]


def seconds(home: Simulation, clients: Sequence[Client], shared: State) -> float:
    """Wall time of some steps of ``clients`` at once, or of one alone."""
    begin = time.perf_counter()
    if len(clients) == 1:
        home.strategy.train(clients[0], shared, None, 1)
    else:
        home.strategy.train_clients(clients, shared, [None] * len(clients), 1)
    return time.perf_counter() - begin
