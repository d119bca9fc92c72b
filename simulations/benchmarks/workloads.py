"""Workloads of the benchmarks on fedkd's own engine: local training in this process, and federations on Ray actors."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from omegaconf import OmegaConf

from fedkd.errors import require
from fedkd.federation import serialization
from fedkd.federation.client import Client
from fedkd.federation.server_loop import Round
from fedkd.seed import Seed
from fedkd.strategy import Strategy
from fedkd.types import Examples, Partition, State, Task, Update
from simulations.benchmarks.reference_loop import EXAMPLES_PER_CLIENT, RANDOM_TASK, random_examples
from simulations.config import compose
from simulations.engine.flower_compat import set_task_identity
from simulations.engine.ray_engine import RayGrid
from simulations.federation.runner import make_paths_absolute, start_global_evaluation
from simulations.process import configure_process
from simulations.setup.simulation import Simulation, build_simulation

# ------------------------------------------------------------------------------------------- local training in this process


def config_text(overrides: list[str]) -> str:
    """The configuration as YAML. Defaults are FedGen and this process; ``overrides`` change them."""
    config = compose(["strategy=fedgen", "engine=local", *overrides])
    make_paths_absolute(config)
    return OmegaConf.to_yaml(config, resolve=True)


def make_simulation(overrides: list[str]) -> Simulation:
    """A simulation that can train in this process."""
    configure_process()
    set_task_identity()
    return build_simulation(config_text(overrides))


def initial_broadcast(simulation: Simulation) -> State:
    """The state that all clients receive in the first round."""
    state = simulation.strategy.init_server(simulation.federation().server)
    return {name: state[name] for name in simulation.strategy.broadcast_parts}


def local_training(overrides: list[str], num_clients: int, compiled: bool) -> Callable[[], object]:
    """A function that trains the first ``num_clients`` clients for one round, all of them as one program.

    Raises:
        ConfigError: the clients cannot train as one program.
    """
    simulation = make_simulation([*overrides, f"compile={str(compiled).lower()}"])
    groups = {simulation.vmap_group(number) for number in range(num_clients)}
    rule = f"must give the first {num_clients} clients batches of one size (batch_size or more examples each; partition=iid does)"
    require(len(groups) == 1, "partition", rule, sorted(groups))
    broadcast = initial_broadcast(simulation)

    def train() -> object:
        clients = [simulation.client(number, 2) for number in range(num_clients)]
        return simulation.strategy.train_clients(clients, broadcast, [None] * num_clients, 2)

    return train


def random_image_training(overrides: list[str], num_clients: int, clients_per_vmap: int, num_steps: int = 2) -> Callable[[], object]:
    """A function that trains each client for ``num_steps`` local steps on random images of CIFAR's shape.

    ``clients_per_vmap`` clients train as one program. With 1 the clients train sequentially.
    """
    simulation = make_simulation([*overrides, *random_image_overrides(num_clients)])
    broadcast, strategy = {"model": initial_broadcast(simulation)["model"]}, simulation.strategy

    def train() -> None:
        clients = [replace(simulation.client(number, 2), num_steps=num_steps) for number in range(num_clients)]
        for chunk in simulation.split_into_chunks(range(num_clients), clients_per_vmap, 2):
            if len(chunk) == 1:
                strategy.train(clients[chunk[0]], broadcast, None, 2)
            else:
                strategy.train_clients([clients[number] for number in chunk], broadcast, [None] * len(chunk), 2)

    return train


# ------------------------------------------------------------------------------------------- federations on Ray actors


@dataclass(frozen=True)
class RoundSeconds:
    """Seconds of one training round.

    Args:
        wall: wall-clock time of the whole round.
        training: local training on the actor that trained longest.
        server: computation of the server's hooks.
    """

    wall: float
    training: float
    server: float


class HookTimer:
    """Measures the seconds that the server's hooks of a strategy take.

    Args:
        strategy: its hooks ``aggregate`` and ``server_training`` are replaced on the object until :meth:`remove`.
    """

    HOOKS = ("aggregate", "server_training")

    def __init__(self, strategy: Strategy) -> None:
        self.seconds, self.strategy = 0.0, strategy
        for name in self.HOOKS:
            setattr(strategy, name, self._timed(getattr(strategy, name)))

    def remove(self) -> None:
        """Restore the hooks."""
        for name in self.HOOKS:
            delattr(self.strategy, name)

    def _timed(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def timed_hook(*args: Any) -> Any:
            started = time.perf_counter()
            result = hook(*args)
            self.seconds += time.perf_counter() - started
            return result

        return timed_hook


class RayFederation:
    """A federation on Ray actors whose rounds are run on request.

    Args:
        config: the configuration as YAML.
        num_workers: number of actors.
    """

    def __init__(self, config: str, num_workers: int) -> None:
        set_task_identity()
        configure_process()
        self.simulation = build_simulation(config)
        self.strategy = self.simulation.strategy
        self.strategy.federation = self.simulation.federation()
        self.grid = RayGrid(
            self.simulation.config.num_clients, config, workers=num_workers, num_gpus=0.0, address=None, patience=0.0, ship_code=False
        )
        self.arrays: ArrayRecord | None = None
        self.rounds_done = 0

    def run_rounds(self, number: int) -> None:
        """Run the next ``number`` rounds, evaluation included."""
        first = self.rounds_done + 1
        self.rounds_done += number
        result = self.strategy.start(
            self.grid, self.arrays, num_rounds=self.rounds_done, timeout=600.0, start_round=first,
            evaluate_fn=partial(start_global_evaluation, self.simulation, self.grid),
        )  # fmt: skip
        self.arrays = result.arrays

    def time_training_rounds(self, number: int) -> list[RoundSeconds]:
        """Run and measure ``number`` rounds without evaluation. One more round is run, because the last one is not measured."""
        timer, measured, started = HookTimer(self.strategy), list[RoundSeconds](), time.perf_counter()
        self.strategy.federation = replace(self.strategy.federation, evaluate_every=10**9)

        def on_round(finished: Round) -> None:
            nonlocal started
            now = time.perf_counter()
            busy: dict[object, float] = {}
            for reply in finished.train_replies:
                info = reply.content.config_records[serialization.CLIENT_INFO]
                busy[info["worker"]] = busy.get(info["worker"], 0.0) + cast(float, info["seconds"])
            measured.append(RoundSeconds(now - started, max(busy.values()), timer.seconds))
            started, timer.seconds = time.perf_counter(), 0.0

        first = self.rounds_done + 1
        self.rounds_done += number + 1
        self.strategy.start(self.grid, self.arrays, num_rounds=self.rounds_done, timeout=3600.0, start_round=first, on_round=on_round)
        self.strategy.federation = self.simulation.federation()
        timer.remove()
        return measured[:-1]

    def actors_memory(self) -> list[int]:
        """The peak memory of each actor in KiB."""
        return self.grid.peak_memory()

    def exchange_messages(self) -> list[Message]:
        """Send the training messages of a round and return the clients' replies. Nothing is aggregated."""
        if self.arrays is None:
            self.arrays = serialization.to_record(self.strategy.init_server(self.strategy.federation.server))
        messages = list(self.strategy.configure_train(1, self.arrays, ConfigRecord(), self.grid))
        replies = self.grid.send_and_receive(messages, timeout=600.0)
        assert len(replies) == len(messages) and not any(reply.has_error() for reply in replies), "every client has replied"
        return replies


@contextmanager
def ray_federation(overrides: list[str], num_workers: int) -> Iterator[RayFederation]:
    """A federation on Ray actors, which end with the context."""
    federation = RayFederation(config_text(overrides), num_workers)
    try:
        yield federation
    finally:
        federation.grid.close()


class EchoStrategy(Strategy):
    """A strategy whose clients return the model that they received, without training."""

    def train(self, client: Client, broadcast: State, client_state: State | None, server_round: int) -> tuple[Update, State]:
        """The received model as the client's update."""
        return Update(client.id, len(client.data), client.architecture, {"model": broadcast["model"]}, {"loss": 0.0}), {}


@contextmanager
def echo_federation(num_clients: int, num_workers: int) -> Iterator[RayFederation]:
    """A federation of :class:`EchoStrategy` in which every client takes part in every round. Its model has one kilobyte."""
    target = f"strategy._target_={EchoStrategy.__module__}.{EchoStrategy.__qualname__}"
    clients = [f"num_clients={num_clients}", f"clients_per_round={num_clients}", "clients_per_vmap=1"]
    overrides = ["strategy=fedavg", target, *clients, "partition=iid", "model=mlp", "model.widths=[3]"]
    with ray_federation(overrides, num_workers) as federation:
        yield federation


# ------------------------------------------------------------------------------------------- data and partitions


def random_pixels(*, num_examples: int, seed: int) -> tuple[Task, Examples, Examples]:
    """A data set of random bytes in the shape of CIFAR-100. Training and test images are the same."""
    data = random_examples(Seed(seed) / "pixels", num_examples)
    return RANDOM_TASK, data, data


def overlapping(train: np.ndarray, test: np.ndarray, num_clients: int, rng: np.random.Generator, *, size: int) -> Partition:
    """A partition in which each client holds ``size`` random examples, some of them also held by others."""

    def shards(labels: np.ndarray) -> list[np.ndarray]:
        return [np.sort(rng.choice(len(labels), size, replace=False)) for _ in range(num_clients)]

    return Partition(shards(train), shards(test))


def overlapping_overrides(size: int) -> list[str]:
    """Overrides that choose the partition :func:`overlapping`."""
    target = f"{overlapping.__module__}.{overlapping.__qualname__}"
    return ["~partition", f"+partition._target_={target}", "+partition._partial_=true", f"+partition.size={size}"]


def random_pixels_overrides(num_examples: int) -> list[str]:
    """Overrides that choose the data set :func:`random_pixels`."""
    target = f"{random_pixels.__module__}.{random_pixels.__qualname__}"
    return ["~data", f"+data._target_={target}", "+data._partial_=true", f"+data.num_examples={num_examples}", "+data.seed=0"]


def random_image_overrides(num_clients: int) -> list[str]:
    """Overrides for ``num_clients`` clients that all train in every round, on random images of their own."""
    clients = ["name=pixels", "partition=iid", f"num_clients={num_clients}", f"clients_per_round={num_clients}"]
    return [*random_pixels_overrides(EXAMPLES_PER_CLIENT * num_clients), *clients]
