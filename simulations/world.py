"""What a configuration stands for: data, partition, network, strategy. Built once in every process that needs it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from omegaconf import DictConfig, OmegaConf

from fedkd.bound import snapshot
from fedkd.check import require
from fedkd.config import build, check, identity, make
from fedkd.exchange import Federation
from fedkd.folding import has_randomness
from fedkd.models.classifier import Classifier
from fedkd.models.mixed import Mixed
from fedkd.partition.hold_out import hold_out
from fedkd.seed import Seed
from fedkd.site import Client, Server, statistics
from fedkd.strategy import Strategy
from fedkd.systems import ALIKE, Fleet, Systems, equip
from fedkd.train import Execution
from fedkd.types import Examples, Partition, Task, Tensors


@dataclass(frozen=True)
class Network:
    """One architecture: its name, a workspace, and every parameter and buffer as the run begins."""

    name: str
    model: Classifier
    initial: Tensors


@dataclass(frozen=True)
class World:
    """Everything of a run that follows from its configuration alone, the same in every process.

    Args:
        config: resolved.
        task: what is learnt.
        train: the training set.
        test: what the balanced test is on: the test set, or what the clients hold out (``evaluation.examples``).
        partition: who holds what of ``train`` and, in ``test``, of ``scored``.
        scored: the set that the clients' own test shards are part of.
        shards: what each client trains on and is scored on, as it sees it.
        networks: each client's network; the server's is the first client's where all are alike, else the first that is configured.
        server_network: the server's.
        strategy: fedkd's or Flower's own.
        optimizer: the clients'.
        fleet: who takes part, and how long that takes.
        public: the public set, if there is one; its labels are gone.
        validation: what the clients hold out for early stopping, if anything.
    """

    config: DictConfig
    task: Task
    train: Examples
    test: Examples
    partition: Partition
    scored: Examples
    shards: tuple[list[Examples], list[Examples]]
    networks: list[Network]
    server_network: Network
    strategy: FlowerStrategy
    optimizer: Any
    fleet: Fleet
    public: Examples | None
    validation: Examples | None

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
        """Identity of the run: see :func:`fedkd.config.identity`."""
        parts = hashlib.sha256()
        for index in (*self.partition.train, *self.partition.test):
            parts.update(len(index).to_bytes(8, "big") + index.astype("<i8").tobytes())
        digests = {"train": self.train.digest, "test": self.test.digest, "partition": parts.hexdigest()}
        digests |= {"public": self.public.digest} if self.public is not None else {}
        trace = hashlib.sha256(json.dumps(self.fleet.trace).encode()).hexdigest()
        return identity(self.config, digests | ({"trace": trace} if self.fleet.trace else {}))

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
            data=self.shards[testing][number],
            num_steps=self.fleet.steps(number, server_round),
            batch_size=settings.batch_size,
            optimizer=self.optimizer,
            lr=lr,
            momentum=momentum,
            dtype=self.dtype,
            execution=self.execution,
            public=self.public,
        )

    def shape(self, number: int) -> tuple[int, int]:
        """Batch size and number of steps of a client's round, where it is no straggler."""
        return self.fleet.shapes[number]

    def load(self, number: int, server_round: int) -> int:
        """The examples that a client computes in a round."""
        return self.shape(number)[0] * self.fleet.steps(number, server_round)

    def chunks(self, clients: Sequence[int], size: int, server_round: int) -> list[list[int]]:
        """A round's clients in groups that train at once: alike in network and batch size, by steps and number, ``size`` at most.

        It depends on nothing else, so neither do the results: not on the number of workers, nor on who else is asked again.
        """
        alike: dict[tuple[str, int], list[int]] = {}
        for client in sorted(clients, key=lambda number: (-self.fleet.steps(number, server_round), number)) if size > 1 else clients:
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
            self.task, self.seed, self.model, self.initial, config.num_clients, config.evaluation.batch_size, self.dtype, self.public,
            self.validation,
        )  # fmt: skip
        policy = config.on_client_failure, config.retries, config.evaluation.every
        return Federation(server, config.clients_per_round, *policy, self.fleet)


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
    task, train, test = make("data", build(config, "data"))
    seed = Seed(config.seed)
    enough = f"must be at most the number of training examples ({len(train)})"
    require(config.num_clients <= len(train), "num_clients", enough, config.num_clients)
    labels, rng = (train.y.numpy(), test.y.numpy()), (seed / "partition").numpy()
    partition = make("partition", build(config, "partition"), *labels, config.num_clients, rng)
    strategy, optimizer, systems, source = (build(config, part) for part in ("strategy", "optimizer", "systems", "public"))
    known = isinstance(strategy, FlowerStrategy)
    require(known, "strategy._target_", "must be a strategy of fedkd or Flower", config.strategy["_target_"])
    train, test = train.to(device), test.to(device)
    stays, validation = hold_out(partition.train, config.validation, seed / "validation")
    stays, withheld = hold_out(stays, source.held_out, seed / "public")
    held_out = train.subset(np.concatenate(validation)) if config.validation else None
    public = make("public", source, task, train.subset(np.concatenate(withheld)), train.subset(np.concatenate(stays)), seed / "public")
    scored = train if config.evaluation.examples == "validation" else test
    public = None if public is None else public.unlabelled()
    held = validation if scored is train else partition.test
    if config.evaluation.shards == "all":
        held = [np.sort(np.concatenate(validation)) if scored is train else np.arange(len(test))] * config.num_clients
    partition = replace(partition, train=stays, test=held)
    shards = make("shift", build(config, "shift"), train, scored, partition, task.num_classes, seed / "shift")
    networks, server = settled(config, task, strategy, seed)
    suitable(config, strategy, networks, partition, public)
    fleet = equipped(config, strategy, systems, [len(index) for index in partition.train], seed)
    return World(
        config, task, train, held_out if scored is train else test, partition, scored, shards, networks, server, strategy, optimizer, fleet,
        public, held_out if scored is test else None,
    )  # fmt: skip


def settled(config: DictConfig, task: Task, strategy: FlowerStrategy, seed: Seed) -> tuple[list[Network], Network]:
    """Every client's network, and the server's."""
    maker, number = build(config, "model"), config.num_clients
    name = config.choices.get("model", "model")
    makers = maker.networks if isinstance(maker, Mixed) else {name: maker}
    seeds = {one: seed / "model" / one for one in makers} if isinstance(maker, Mixed) else {name: seed / "model"}
    assigned = make("model", maker.assign, number, (seed / "assignment").numpy()) if isinstance(maker, Mixed) else [name] * number
    networks = {}
    for one, of in makers.items():
        with seeds[one].globally():
            model = make("model", of, task).to(config.device, dtype_of(config))
        networks[one] = Network(one, model, snapshot(model))
    return [networks[one] for one in assigned], next(iter(networks.values()))


def equipped(config: DictConfig, strategy: FlowerStrategy, systems: Systems, num_examples: Sequence[int], seed: Seed) -> Fleet:
    """The clients' devices.

    Raises:
        ValueError: the rules do not suit the run, or its strategy, where that is Flower's own and chooses clients itself.
    """
    if not isinstance(strategy, Strategy):
        rule = f"must be {{}} with {type(strategy).__name__}, which chooses clients itself and waits for all (with fedkd's strategies it may differ)"
        for name in ("participation", "dropout", "stragglers", "deadline", "newcomers"):
            given, alike = getattr(systems, name), getattr(ALIKE, name)
            require(given == alike, f"systems.{name}", rule.format("null" if alike is None else alike), given)
    batches = [min(config.batch_size, examples) for examples in num_examples]
    steps = [config.local_steps or config.local_epochs * (examples // batch) for examples, batch in zip(num_examples, batches)]
    return make("systems", equip, systems, seed, list(zip(batches, steps)), num_examples, config.clients_per_round, config.rounds)


def suitable(
    config: DictConfig, strategy: FlowerStrategy, networks: Sequence[Network], partition: Partition, public: Examples | None
) -> None:
    """Refuse what would fail later, or mean nothing.

    Raises:
        ValueError: naming the key, the rule, the value and what to do.
    """
    fewest = min(range(len(networks)), key=lambda client: len(partition.train[client]))
    size = len(partition.train[fewest])
    require(
        size > 0,
        "partition",
        "must leave no client without training examples (fewer clients, or a larger min_size)",
        f"client {fewest} with none",
    )
    for client, network in enumerate(networks):
        enough = len(partition.train[client]) > 1 or not statistics(network.model)
        rule = "must leave every client two training examples, as BatchNorm needs them (min_size=2, fewer clients, less held out, or model=mlp)"
        require(enough, "partition", rule, f"client {client} with 1")
    name = config.choices.get("strategy", config.strategy["_target_"])
    if isinstance(strategy, Strategy) and strategy.needs_public and public is None:
        raise ValueError(
            f"public must be a public set, as strategy {name} distils on one: public=held_out, training, other or synthetic, got none"
        )
    kinds = {network.name: network.model.embedding_size for network in networks}
    if len(kinds) == 1:
        return
    can = strategy.unlike_models if isinstance(strategy, Strategy) else "no"
    if can == "no":
        from simulations.ingredients import able

        as_they_are, with_heads = able()
        advice = " or share heads alone (strategy.sharing=head)," if name in with_heads else ""
        raise ValueError(
            f"model must be one network for all clients with strategy {name}, which averages whole models, got {', '.join(kinds)}; take one "
            f"network,{advice} or a strategy that can: {', '.join(as_they_are)}; with strategy.sharing=head also {', '.join(with_heads)}"
        )
    if can == "embedding" and len(set(kinds.values())) > 1:
        sizes = ", ".join(f"{one} {size}" for one, size in kinds.items())
        raise ValueError(f"model.networks must have embeddings of one size, as strategy {name} shares what reads them, got {sizes}")
