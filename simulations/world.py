"""What a configuration stands for: data, partition, network, strategy. Built once in every process that needs it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from omegaconf import DictConfig, OmegaConf

from fedkd.bound import snapshot
from fedkd.check import require
from fedkd.config import build, check, identity, make
from fedkd.folding import has_randomness
from fedkd.models.classifier import Classifier
from fedkd.rounds import Federation
from fedkd.seed import Seed
from fedkd.site import Client, Server
from fedkd.train import Execution
from fedkd.types import Examples, Partition, Task, Tensors


@dataclass(frozen=True)
class World:
    """Everything of a run that follows from its configuration alone, the same in every process."""

    config: DictConfig
    task: Task
    train: Examples
    test: Examples
    partition: Partition
    model: Classifier
    initial: dict[str, torch.Tensor]
    strategy: FlowerStrategy
    optimizer: Any

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
    def architecture(self) -> str:
        """The network's name."""
        return self.config.choices.get("model", "model")

    @cached_property
    def settings(self) -> SimpleNamespace:
        """The run's own keys as plain values: a look into the configuration takes microseconds, and a round looks often."""
        return SimpleNamespace(**{key: value for key, value in self.config.items() if not isinstance(value, DictConfig)})

    @cached_property
    def hash(self) -> str:
        """Identity of the run: see :func:`fedkd.config.identity`."""
        parts = hashlib.sha256()
        for index in (*self.partition.train, *self.partition.test):
            parts.update(len(index).to_bytes(8, "big") + index.astype("<i8").tobytes())
        return identity(self.config, {"train": self.train.digest, "test": self.test.digest, "partition": parts.hexdigest()})

    def client(self, number: int, server_round: int, *, testing: bool = False) -> Client:
        """Client ``number`` in round ``server_round``, with its training data, or with its test shard."""
        settings, index = self.settings, (self.partition.test if testing else self.partition.train)[number]
        data = (self.test if testing else self.train).subset(index)
        lr, momentum = (self.optimizer.keywords.get(name, 0.0) for name in ("lr", "momentum"))
        return Client(
            id=number,
            task=self.task,
            seed=self.seed / "round" / server_round / "client" / number,
            model=self.model,
            initial=self.initial,
            architecture=self.architecture,
            data=data,
            num_steps=self.shape(number)[1],
            batch_size=settings.batch_size,
            optimizer=self.optimizer,
            lr=lr,
            momentum=momentum,
            dtype=self.dtype,
            execution=self.execution,
        )

    def shape(self, number: int) -> tuple[int, int]:
        """Batch size and number of steps of a client's round."""
        examples = len(self.partition.train[number])
        batch = min(self.settings.batch_size, examples)
        return batch, self.settings.local_steps or self.settings.local_epochs * (examples // batch)

    def load(self, number: int) -> int:
        """The examples that a client computes in a round."""
        batch, steps = self.shape(number)
        return batch * steps

    def chunks(self, clients: Sequence[int], size: int) -> list[list[int]]:
        """A round's clients in groups that train at once: alike in batch size, by steps and number, ``size`` at most.

        It depends on nothing else, so neither do the results: not on the number of workers, nor on who else is asked again.
        """
        if size == 1 or has_randomness(self.model):
            return [[client] for client in clients]
        alike: dict[int, list[int]] = {}
        for client in sorted(clients, key=lambda number: (-self.shape(number)[1], number)):
            alike.setdefault(self.shape(client)[0], []).append(client)
        return [group[i : i + size] for group in alike.values() for i in range(0, len(group), size)]

    def receive(self, arrays: ArrayRecord) -> Tensors:
        """A model of a strategy that is not fedkd's, as tensors of this model's types: Flower averages integers to floats."""
        tensors = arrays.to_torch_state_dict()
        whole = {key: tensors[key] if value.is_floating_point() else tensors[key].round() for key, value in self.initial.items()}
        return {key: whole[key].to(value.device, value.dtype) for key, value in self.initial.items()}

    def federation(self) -> Federation:
        """What the strategy must know of the run."""
        config = self.config
        server = Server(self.task, self.seed, self.model, self.initial, config.num_clients, config.evaluation.batch_size, self.dtype)
        return Federation(server, config.clients_per_round, config.on_client_failure, config.retries, config.evaluation.every)


def dtype_of(config: DictConfig) -> torch.dtype:
    """Of weights and images."""
    return torch.float64 if config.precision == "float64" else torch.float32


@lru_cache(maxsize=2)
def world(text: str) -> World:
    """The world of a configuration given as YAML; built at the first call in this process.

    Raises:
        ValueError: naming the key that is wrong, its rule and its value.
    """
    config = OmegaConf.create(text)
    check(config)
    device = config.device
    require(device == "cpu" or torch.cuda.is_available(), "device", "must be one that this machine has (no GPU is visible here)", device)
    torch.set_num_threads(1)  # another number is another rounding
    strategy = build(config, "strategy")
    known = isinstance(strategy, FlowerStrategy)
    require(known, "strategy._target_", "must be a strategy of fedkd or Flower", config.strategy["_target_"])
    task, train, test = make("data", build(config, "data"))
    seed = Seed(config.seed)
    enough = f"must be at most the number of training examples ({len(train)})"
    require(config.num_clients <= len(train), "num_clients", enough, config.num_clients)
    labels, rng = (train.y.numpy(), test.y.numpy()), (seed / "partition").numpy()
    partition = make("partition", build(config, "partition"), *labels, config.num_clients, rng)
    with (seed / "model").globally():
        model = make("model", build(config, "model"), task).to(device, dtype_of(config))
    optimizer = build(config, "optimizer")
    return World(config, task, train.to(device), test.to(device), partition, model, snapshot(model), strategy, optimizer)
