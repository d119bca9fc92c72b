"""Local training of many clients on a GPU, and the CIFAR-10 benchmark of federated-learning simulators.

``python -m simulations.benchmarks.gpu data=mnist data.root=FOLDER`` prints ``<figure> <value>``, one per line. ``device=cpu`` runs the
program without a GPU; the figures are then not what their names say. Further words ``KEY=VALUE`` are those of ``fedkd run``.

``gpu_10``, ``gpu_100``, ``gpu_1000``: FedGen's local training of 10, 100 and 1,000 clients, 20 steps with batches of 32, up to 50 clients
as one program, against an eager loop over clients and steps on the same device: the ratio of times per client step.
``gpu_cifar``: minutes of the simulators' CIFAR-10 benchmark on random pixels: 1,000 clients with 50 examples, 50 clients per round, one
epoch with batches of 10, evaluation every 10 rounds, 1,500 rounds. ``rounds=N`` runs N rounds and scales the time to 1,500. The network is
FedGen's with widths 32 and 64. The fastest simulator's published time is 4.2 minutes, on an A100 with five processes.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from fedkd.errors import require
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import State
from simulations.benchmarks import workloads
from simulations.cli.exit_codes import one_line_errors
from simulations.engine.local_engine import LocalGrid
from simulations.federation.runner import start_global_evaluation
from simulations.setup.simulation import Simulation, build_simulation

CLIENTS_PER_VMAP = 50
ROUNDS = 1500
"""Rounds of the published CIFAR-10 benchmark."""

REPETITIONS = 5
NUM_CLIENTS = (10, 100, 1000)


def timed_on_device(work: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of one call, with all work that it starts on the device."""

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def train_eagerly(simulation: Simulation, broadcast: State, num_clients: int) -> None:
    """Local training by a loop over clients and steps, with PyTorch's eager execution."""
    strategy = simulation.strategy
    for number in range(num_clients):
        client, phases, start, client_state = strategy._prepare(simulation.client(number, 2), broadcast, None, 2)
        model = copy.deepcopy(simulation.model).train()
        model.load_state_dict(start)
        bound = FunctionalModel(model)
        for phase in phases:
            optimizer = phase.make_optimizer(client)(model.parameters())
            for batch in phase.batches:
                value, _ = phase.loss(bound, batch, broadcast, client_state)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()


def train_as_program(simulation: Simulation, broadcast: State, num_clients: int) -> None:
    """The same training with up to ``CLIENTS_PER_VMAP`` clients as one program."""
    for first in range(0, num_clients, CLIENTS_PER_VMAP):
        clients = [simulation.client(number, 2) for number in range(first, min(first + CLIENTS_PER_VMAP, num_clients))]
        simulation.strategy.train_clients(clients, broadcast, [None] * len(clients), 2)


def local_training(overrides: list[str], device: str) -> None:
    """Print ``gpu_10``, ``gpu_100`` and ``gpu_1000``."""
    clients = [*workloads.overlapping_overrides(64), f"num_clients={max(NUM_CLIENTS)}"]
    simulation = workloads.make_simulation([*overrides, *clients, f"device={device}"])
    broadcast, num_steps = workloads.initial_broadcast(simulation), simulation.config.local_steps
    for num_clients in NUM_CLIENTS:
        num_eager = min(num_clients, 10)  # the loop costs the same for every client

        def eager(number: int = num_eager) -> None:
            train_eagerly(simulation, broadcast, number)

        def program(number: int = num_clients) -> None:
            train_as_program(simulation, broadcast, number)

        timed_on_device(program, device)
        times = []
        for _ in range(REPETITIONS):
            slow = timed_on_device(eager, device) / (num_eager * num_steps)
            fast = timed_on_device(program, device) / (num_clients * num_steps)
            times.append((slow, fast))
        slow, fast = (statistics.median(column) * 1e6 for column in zip(*times))
        print(f"# gpu_{num_clients}: {slow:.4g} against {fast:.4g} microseconds per client step; {REPETITIONS} pairs", flush=True)
        print(f"gpu_{num_clients} {statistics.median(a / b for a, b in times):.3g}", flush=True)


def cifar10(device: str, rounds: int) -> None:
    """Print ``gpu_cifar``."""
    data = [*workloads.random_pixels_overrides(50_000), "name=pixels", "partition=iid"]
    size = ["num_clients=1000", "clients_per_round=50", "local_steps=null", "local_epochs=1", "batch_size=10", "evaluation.every=10"]
    options = ["strategy=fedavg", "model.widths=[32,64]", f"clients_per_vmap={CLIENTS_PER_VMAP}", f"device={device}", f"rounds={rounds}"]
    config = workloads.config_text([*data, *size, *options])
    simulation = build_simulation(config)
    strategy, grid = simulation.strategy, LocalGrid(1000, config)
    strategy.federation = simulation.federation()

    def run() -> None:
        strategy.start(grid, num_rounds=rounds, evaluate_fn=partial(start_global_evaluation, simulation, grid))

    seconds = timed_on_device(run, device)
    print(f"# gpu_cifar: {seconds:.4g} seconds for {rounds} rounds, evaluation included", flush=True)
    print(f"gpu_cifar {seconds * ROUNDS / rounds / 60:.3g}", flush=True)


def main(words: Sequence[str]) -> None:
    """Print all figures.

    Raises:
        ConfigError: this machine has no such device.
    """
    own = dict(word.split("=", 1) for word in words if word.startswith(("device=", "rounds=")))
    device = own.get("device", "cuda")
    visible = device == "cpu" or torch.cuda.is_available()
    require(visible, "device", "must be one that this machine has (no GPU is visible here; device=cpu tries the program)", device)
    name = torch.cuda.get_device_name() if device.startswith("cuda") else "no GPU: the figures are not what their names say"
    print(f"# {name}, torch {torch.__version__}, one process, batches of 32 and 10", flush=True)
    local_training([word for word in words if not word.startswith(("device=", "rounds="))], device)
    cifar10(device, int(own.get("rounds", ROUNDS)))


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
