"""What a configuration stands for: data, partition, network, strategy. Built once in every process that needs it."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from omegaconf import DictConfig, OmegaConf

from fedkd.config.build import build, config_hash, call_part
from fedkd.config.validation import check_run
from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.messaging import Federation
from fedkd.federation.server import Server
from fedkd.federation.system_heterogeneity import Devices
from fedkd.models.base import Classifier
from fedkd.seed import Seed
from fedkd.training.loop import Execution
from fedkd.training.vectorized_layers import has_randomness
from fedkd.types import Examples, Partition, Task, Tensors
from simulations.config import compose
from simulations.overrides import extend_sys_path
from simulations.setup.clients import ClientData, Network, make_client_data, make_networks
from simulations.setup.compatibility import check_compatibility, make_run_devices


@dataclass(frozen=True)
class Simulation:
    """Everything of a run that follows from its configuration alone, the same in every process.

    Args:
        config: resolved.
        task: what is learnt.
        train: the whole training set.
        held: who holds what, and what is scored.
        networks: each client's network; the server's is the first client's where all are alike, else the first that is configured.
        server_network: the server's.
        strategy: fedkd's or Flower's own.
        optimizer: the clients'.
        devices: who takes part, and how long that takes.
    """

    config: DictConfig
    task: Task
    train: Examples
    held: ClientData
    networks: list[Network]
    server_network: Network
    strategy: FlowerStrategy
    optimizer: Any
    devices: Devices

    @property
    def test(self) -> Examples:
        """What the balanced test is on."""
        return self.held.test

    @property
    def partition(self) -> Partition:
        """Who holds which examples."""
        return self.held.partition

    @property
    def model(self) -> Classifier:
        """The server's network."""
        return self.server_network.model

    @property
    def initial(self) -> Tensors:
        """Its parameters and buffers as the run begins."""
        return self.server_network.initial

    @property
    def seed(self) -> Seed:
        """The root of the run's randomness."""
        return Seed(self.config.seed)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of weights and images."""
        return dtype_of(self.config)

    @cached_property
    def execution(self) -> Execution:
        """How local steps are computed."""
        return Execution(self.config.compile, autocast=self.config.precision == "bfloat16")

    @cached_property
    def settings(self) -> SimpleNamespace:
        """The run's own keys as plain values: a look into the configuration takes microseconds, and a round looks often."""
        return SimpleNamespace(**{key: value for key, value in self.config.items() if not isinstance(value, DictConfig)})

    @cached_property
    def hash(self) -> str:
        """Identity of the run: see :func:`fedkd.config.build.identity`."""
        parts = hashlib.sha256()
        for index in (*self.partition.train, *self.partition.test):
            parts.update(len(index).to_bytes(8, "big") + index.astype("<i8").tobytes())
        digests = {"train": self.train.digest, "test": self.test.digest, "partition": parts.hexdigest()}
        digests |= {"public_data": self.held.public_data.digest} if self.held.public_data is not None else {}
        trace = hashlib.sha256(json.dumps(self.devices.trace).encode()).hexdigest()
        return config_hash(self.config, digests | ({"trace": trace} if self.devices.trace else {}))

    def client(self, number: int, server_round: int, *, testing: bool = False) -> Client:
        """Client ``number`` in round ``server_round``, with its training data, or with its test shard."""
        settings, network = self.settings, self.networks[number]
        lr, momentum = (self.optimizer.keywords.get(name, 0.0) for name in ("lr", "momentum"))
        return Client(
            id=number,
            task=self.task,
            seed=self.seed / "round" / server_round / "client" / number,
            model=network.model,
            initial=network.initial,
            architecture=network.name,
            data=self.held.shards[testing][number],
            num_steps=self.devices.steps(number, server_round),
            batch_size=settings.batch_size,
            optimizer=self.optimizer,
            lr=lr,
            momentum=momentum,
            dtype=self.dtype,
            execution=self.execution,
            public_data=self.held.public_data,
        )

    def shape(self, number: int) -> tuple[int, int]:
        """Batch size and number of steps of a client's round, where it is no straggler."""
        return self.devices.shapes[number]

    def load(self, number: int, server_round: int) -> int:
        """The examples that a client computes in a round."""
        return self.shape(number)[0] * self.devices.steps(number, server_round)

    def chunks(self, clients: Sequence[int], size: int, server_round: int) -> list[list[int]]:
        """A round's clients in groups that train at once: alike in network and batch size, by steps and number, ``size`` at most.

        It depends on nothing else, so neither do the results: not on the number of workers, nor on who else is asked again.
        """
        alike: dict[tuple[str, int], list[int]] = {}
        for client in sorted(clients, key=lambda number: (-self.devices.steps(number, server_round), number)) if size > 1 else clients:
            alike.setdefault(self.kind(client), []).append(client)
        sizes = {kind: 1 if has_randomness(self.networks[group[0]].model) else size for kind, group in alike.items()}
        return [group[i : i + sizes[kind]] for kind, group in alike.items() for i in range(0, len(group), sizes[kind])]

    def kind(self, number: int) -> tuple[str, int]:
        """What clients must have in common to train at once: network and batch size."""
        return self.networks[number].name, self.shape(number)[0]

    def receive(self, arrays: ArrayRecord) -> Tensors:
        """A model of a strategy that is not fedkd's, as tensors of this model's types: Flower averages integers to floats."""
        tensors = arrays.to_torch_state_dict()
        whole = {key: tensors[key] if value.is_floating_point() else tensors[key].round() for key, value in self.initial.items()}
        return {key: whole[key].to(value.device, value.dtype) for key, value in self.initial.items()}

    def federation(self) -> Federation:
        """What the strategy must know of the run."""
        config = self.config
        server = Server(
            self.task, self.seed, self.model, self.initial, config.num_clients, config.evaluation.batch_size, self.dtype, self.held.public_data,
            self.held.validation,
        )  # fmt: skip
        policy = config.on_client_failure, config.retries, config.evaluation.every
        return Federation(server, config.clients_per_round, *policy, self.devices)


def dtype_of(config: DictConfig) -> torch.dtype:
    """Of weights and images."""
    return torch.float64 if config.precision == "float64" else torch.float32


@lru_cache(maxsize=2)
def build_simulation(text: str) -> Simulation:
    """The world of a configuration given as YAML; built at the first call in this process.

    Raises:
        ConfigError: naming the key that is wrong, its rule and its value.
    """
    config = OmegaConf.create(text)
    extend_sys_path(config.searchpath)  # of the driver, an actor, or a node
    check_run(config)
    device = config.device
    require(device == "cpu" or torch.cuda.is_available(), "device", "must be one that this machine has (no GPU is visible here)", device)
    torch.set_num_threads(1)  # another number is another rounding
    task, train, test = call_part("data", build(config, "data"))
    seed = Seed(config.seed)
    strategy, optimizer, systems = (build(config, part) for part in ("strategy", "optimizer", "systems"))
    known = isinstance(strategy, FlowerStrategy)
    require(known, "strategy._target_", "must be a strategy of fedkd or Flower", config.strategy["_target_"])
    held = make_client_data(config, task, train, test, seed)
    networks, server = make_networks(config, task, dtype_of(config), seed)
    check_compatibility(config, strategy, networks, held)
    devices = make_run_devices(config, strategy, systems, [len(index) for index in held.partition.train], seed)
    return Simulation(config, task, train.to(device), held, networks, server, strategy, optimizer, devices)


def simulation_from_overrides(overrides: str) -> Simulation:
    """The world of a configuration given as the words of a command line: that of a Flower node that hosts one client."""
    return build_simulation(OmegaConf.to_yaml(compose(shlex.split(overrides)), resolve=True))
