"""What needs a GPU: ``<key> <value>``, one line a figure, as :mod:`simulations.benchmarks.engine` prints them.

``python -m simulations.benchmarks.gpu data=mnist data.root=<folder>`` in a process that owns the GPU; ``device=cpu`` tries it without.

``gpu_10``, ``gpu_100``, ``gpu_1000``: FedGen's local training of so many clients, 20 steps of batches of 32, in cohorts of up to 50,
against the eager loop over clients and steps on the same device; ratios of the cost of a client's step.
``gpu_cifar``: minutes that the simulators' CIFAR-10 benchmark takes in its shape, on random pixels: 1,000 users of 50 examples, 50 a
round, one epoch in batches of 10, evaluation every 10 rounds, 1,500 rounds (``rounds=<number>`` for fewer: the figure is then scaled up).
The network is FedGen's with widths 32 and 64; published for the fastest simulator: 4.2 minutes on an A100 with five processes.
"""

import copy
import statistics
import sys
import time

import torch

from fedkd.training.functional_model import FunctionalModel
from simulations.benchmarks import workloads
from simulations.engine.local_engine import LocalGrid
from simulations.setup.simulation import Simulation, build_simulation

CHUNK, ROUNDS, REPETITIONS, CLIENTS = 50, 1500, 5, (10, 100, 1000)


def synchronised(work, device: str) -> float:
    """Wall time until the device is done too."""
    waiting = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    waiting()
    begin = time.perf_counter()
    work()
    waiting()
    return time.perf_counter() - begin


def eager(home: Simulation, shared: dict, clients: int) -> None:
    """One client after the other, one step after the other, as it is written."""
    for number in range(clients):
        site, batches, begin, own = home.strategy._prepare(home.client(number, 2), shared, None, 2)
        model = copy.deepcopy(home.model).train()
        model.load_state_dict(begin)
        optimizer, bound = site.stepper(model.parameters()), FunctionalModel(model)
        for batch in batches:
            value, _ = home.strategy.loss(bound, batch, shared, own)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()


def cohorts(home: Simulation, shared: dict, clients: int) -> None:
    """The same training in cohorts."""
    for begin in range(0, clients, CHUNK):
        sites = [home.client(number, 2) for number in range(begin, min(begin + CHUNK, clients))]
        home.strategy.train_clients(sites, shared, [None] * len(sites), 2)


def local_training(overrides: list[str], device: str) -> None:
    """``gpu_10``, ``gpu_100`` and ``gpu_1000``."""
    home = workloads.settled([*overrides, *workloads.overlapping_overrides(64), f"num_clients={max(CLIENTS)}", f"device={device}"])
    state = home.strategy.init_server(home.federation().server)
    shared = {name: state[name] for name in home.strategy.broadcast_parts}
    for clients in CLIENTS:
        few = min(clients, 10)  # the loop costs the same for every client
        synchronised(lambda count=clients: cohorts(home, shared, count), device)
        times = []
        for _ in range(REPETITIONS):
            slow = synchronised(lambda count=few: eager(home, shared, count), device) / (few * home.config.local_steps)
            fast = synchronised(lambda count=clients: cohorts(home, shared, count), device) / (clients * home.config.local_steps)
            times.append((slow, fast))
        slow, fast = (statistics.median(column) * 1e6 for column in zip(*times))
        print(f"# gpu_{clients}: {slow:.4g} against {fast:.4g} microseconds per client and step; {REPETITIONS} pairs", flush=True)
        print(f"gpu_{clients} {statistics.median(a / b for a, b in times):.3g}", flush=True)


def cifar(device: str, rounds: int) -> None:
    """``gpu_cifar``."""
    source = f"{workloads.random_pixels.__module__}.{workloads.random_pixels.__qualname__}"
    data = ["~data", f"+data._target_={source}", "+data._partial_=true", "+data.num_examples=50000", "+data.seed=0", "name=pixels"]
    size = ["num_clients=1000", "clients_per_round=50", "local_steps=null", "local_epochs=1", "batch_size=10", "evaluation.every=10"]
    options = [
        "strategy=fedavg",
        "partition=iid",
        "model.widths=[32,64]",
        f"clients_per_vmap={CHUNK}",
        f"device={device}",
        f"rounds={rounds}",
    ]
    text = workloads.configured([*data, *size, *options])
    home = build_simulation(text)
    home.strategy.federation, grid = home.federation(), LocalGrid(1000, text)

    def judge(number: int, arrays) -> dict:
        return workloads.judge(home, grid, arrays)

    seconds = synchronised(lambda: home.strategy.start(grid, num_rounds=rounds, evaluate_fn=judge), device)
    print(f"# gpu_cifar: {seconds:.4g} seconds for {rounds} rounds, everything included", flush=True)
    print(f"gpu_cifar {seconds * ROUNDS / rounds / 60:.3g}", flush=True)


def main(arguments: list[str]) -> None:
    """Print the figures."""
    own = dict(argument.split("=", 1) for argument in arguments if argument.startswith(("device=", "rounds=")))
    device = own.get("device", "cuda")
    name = torch.cuda.get_device_name() if device.startswith("cuda") else "no GPU: the figures are not what their keys say"
    print(f"# {name}, torch {torch.__version__}, one process, batches of 32 and 10", flush=True)
    local_training([a for a in arguments if not a.startswith(("device=", "rounds="))], device)
    cifar(device, int(own.get("rounds", ROUNDS)))


if __name__ == "__main__":
    main(sys.argv[1:])
