"""The workloads of the benchmarks on our own engine."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message
from omegaconf import OmegaConf

from fedkd.federation import serialization
from fedkd.federation.client import Client
from fedkd.federation.server_loop import Round
from fedkd.seed import Seed
from fedkd.strategy import Strategy
from fedkd.types import Examples, Partition, State, Task, Update
from simulations.benchmarks.reference_loop import PIXELS_PER_CLIENT, pixels
from simulations.config import compose
from simulations.engine.flower_compat import identify
from simulations.engine.ray_engine import RayGrid
from simulations.federation.runner import make_paths_absolute, start_global_evaluation
from simulations.process import configure_process
from simulations.setup.simulation import Simulation, build_simulation


def configured(overrides: list[str]) -> str:
    """The configuration as YAML, FedGen in this process unless ``overrides`` say more."""
    config = compose(["strategy=fedgen", "engine=local", *overrides])
    make_paths_absolute(config)
    return OmegaConf.to_yaml(config, resolve=True)


def settled(overrides: list[str]) -> Simulation:
    """A world, ready to train in this process."""
    configure_process()
    identify()
    return build_simulation(configured(overrides))


def local_training(overrides: list[str], clients: int, compiled: bool) -> Callable[[], object]:
    """The local training of so many clients at once in this process, from what they receive to what they send."""
    home = settled([*overrides, f"compile={str(compiled).lower()}"])
    state = home.strategy.init_server(home.federation().server)
    shared = {name: state[name] for name in home.strategy.broadcast_parts}
    return lambda: home.strategy.train_clients([home.client(client, 2) for client in range(clients)], shared, [None] * clients, 2)


@dataclass(frozen=True)
class Training:
    """One training round in seconds: of the whole, of the actor that trained longest, of the server's own computing."""

    wall: float
    training: float
    server: float


class Watched:
    """A strategy's server hooks with a stopwatch."""

    def __init__(self, strategy: Strategy) -> None:
        self.seconds = 0.0
        for name in ("aggregate", "server_training"):
            setattr(strategy, name, self.watch(getattr(strategy, name)))

    def watch(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """``hook``, timed."""

        def watched(*args: Any) -> Any:
            begin = time.perf_counter()
            result = hook(*args)
            self.seconds += time.perf_counter() - begin
            return result

        return watched


class Federated:
    """A federation on Ray actors of our own, one round after the other."""

    def __init__(self, text: str, workers: int) -> None:
        identify()
        configure_process()
        self.home = build_simulation(text)
        self.strategy = self.home.strategy
        self.strategy.federation = self.home.federation()
        self.grid = RayGrid(self.home.config.num_clients, text, workers=workers, num_gpus=0.0, address=None)
        self.arrays, self.number = None, 0

    def rounds(self, number: int) -> None:
        """The next ``number`` of rounds with all that belongs to them, evaluation included."""
        first = self.number + 1
        self.number += number
        result = self.strategy.start(
            self.grid, self.arrays, num_rounds=self.number, timeout=600.0, start_round=first,
            evaluate_fn=lambda number, arrays: start_global_evaluation(self.home, self.grid, arrays),
        )  # fmt: skip
        self.arrays = result.arrays

    def training_rounds(self, number: int) -> list[Training]:
        """So many rounds without evaluation, the last one left out."""
        watch, measured, begin = Watched(self.strategy), [], time.perf_counter()
        self.strategy.federation = replace(self.strategy.federation, evaluate_every=10**9)

        def on_round(done: Round) -> None:
            nonlocal begin
            now, busy = time.perf_counter(), {}
            for reply in done.trained:
                about = reply.content[serialization.CLIENT_INFO]
                busy[about["worker"]] = busy.get(about["worker"], 0.0) + float(about["seconds"])
            measured.append(Training(now - begin, max(busy.values()), watch.seconds))
            begin, watch.seconds = time.perf_counter(), 0.0

        first = self.number + 1
        self.number += number + 1
        self.strategy.start(self.grid, self.arrays, num_rounds=self.number, timeout=3600.0, start_round=first, on_round=on_round)
        self.strategy.federation = self.home.federation()
        for name in ("aggregate", "server_training"):
            delattr(self.strategy, name)
        return measured[:-1]

    def actors_memory(self) -> list[int]:
        """Peak KiB of each actor."""
        return self.grid.peak_memory()

    def exchange(self) -> list[Message]:
        """One phase of messages to all clients of a round, and their replies."""
        if self.arrays is None:
            self.arrays = serialization.to_record(self.strategy.init_server(self.strategy.federation.server))
        messages = list(self.strategy.configure_train(1, self.arrays, ConfigRecord(), self.grid))
        replies = self.grid.send_and_receive(messages, timeout=600.0)
        assert len(replies) == len(messages) and not any(reply.has_error() for reply in replies), "every client has answered"
        return replies


@contextmanager
def federation(overrides: list[str], workers: int) -> Iterator[Federated]:
    """A federation on so many actors, which end with it."""
    ours = Federated(configured(overrides), workers)
    try:
        yield ours
    finally:
        ours.grid.close()


class Idle(Strategy):
    """A strategy whose clients send back what they received."""

    def train(self, client: Client, shared: State, own: State | None, server_round: int) -> tuple[Update, State]:
        """Nothing is trained."""
        return Update(client.id, len(client.data), client.architecture, {"model": shared["model"]}, {"loss": 0.0}), {}


@contextmanager
def idle(clients: int, workers: int) -> Iterator[Federated]:
    """So many clients of which each is asked every round, with a model of a kilobyte."""
    options = [
        f"num_clients={clients}",
        f"clients_per_round={clients}",
        "partition=iid",
        "model=mlp",
        "model.widths=[3]",
        "clients_per_vmap=1",
    ]
    target = f"strategy._target_={Idle.__module__}.{Idle.__qualname__}"
    with federation(["strategy=fedavg", target, *options], workers) as ours:
        yield ours


def random_pixels(*, num_examples: int, seed: int) -> tuple[Task, Examples, Examples]:
    """A data source of random bytes in the shape of CIFAR-100, the same for training and test."""
    data = pixels(Seed(seed) / "pixels", num_examples)
    return Task("pixels", tuple(data.x.shape[1:]), 100), data, data


def overlapping(train: np.ndarray, test: np.ndarray, num_clients: int, rng: np.random.Generator, *, size: int) -> Partition:
    """A split that gives every client ``size`` examples of all, however many clients there are."""
    draw = lambda labels: [np.sort(rng.choice(len(labels), size, replace=False)) for _ in range(num_clients)]
    return Partition(draw(train), draw(test))


def overlapping_overrides(size: int) -> list[str]:
    """Overrides for clients with ``size`` examples each, however many they are."""
    target = f"{overlapping.__module__}.{overlapping.__qualname__}"
    return ["~partition", f"+partition._target_={target}", "+partition._partial_=true", f"+partition.size={size}"]


def pixels_overrides(clients: int) -> list[str]:
    """Overrides for as many clients with random images of their own."""
    source = f"{random_pixels.__module__}.{random_pixels.__qualname__}"
    data = [
        "~data",
        f"+data._target_={source}",
        "+data._partial_=true",
        f"+data.num_examples={PIXELS_PER_CLIENT * clients}",
        "+data.seed=0",
    ]
    return [*data, "name=pixels", "partition=iid", f"num_clients={clients}", f"clients_per_round={clients}"]


def pixels_training(overrides: list[str], clients: int, size: int, steps: int = 2) -> Callable[[], object]:
    """Some local steps on random images, ``size`` clients at once; 1 is one by one."""
    home = settled([*overrides, *pixels_overrides(clients)])
    shared = {"model": home.strategy.init_server(home.federation().server)["model"]}

    def train() -> None:
        sites = [replace(home.client(client, 2), num_steps=steps) for client in range(clients)]
        for chunk in home.chunks(range(clients), size, 2):
            if len(chunk) == 1:
                home.strategy.train(sites[chunk[0]], shared, None, 2)
            else:
                home.strategy.train_clients([sites[client] for client in chunk], shared, [None] * len(chunk), 2)

    return train
