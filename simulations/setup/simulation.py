"""A simulation: data, partition, networks, strategy and devices of one configuration.

Driver and workers each build the same simulation from the same configuration, so that only states and updates are sent between them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from types import SimpleNamespace

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from omegaconf import DictConfig, OmegaConf

from fedkd.config.build import build, config_hash
from fedkd.config.validation import check_run
from fedkd.data.drift import DriftPhase
from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.messaging import Federation
from fedkd.federation.server import Server
from fedkd.federation.system_heterogeneity import Devices
from fedkd.federation.update_check import ReplyCheck
from fedkd.models.base import Classifier
from fedkd.seed import Seed
from fedkd.strategy import Strategy
from fedkd.training.functional_model import keep_frozen
from fedkd.training.loop import Execution
from fedkd.training.optimizers import OptimizerFactory
from fedkd.training.vectorized_layers import trains_alone
from fedkd.types import Examples, Partition, Task, Tensors
from simulations.config import compose
from simulations.overrides import extend_sys_path, run_config_words
from simulations.setup.clients import ClientData, Network, make_client_data, make_networks, read_data
from simulations.setup.compatibility import (
    build_strategy,
    check_compatibility,
    check_phases,
    check_task,
    client_workloads,
    devices_of_sizes,
    drops_last,
    make_run_devices,
)
from simulations.setup.expected_updates import expected_model, expected_update


@dataclass(frozen=True)
class Simulation:
    """All parts of a run that follow from its configuration. They are equal in every process.

    Args:
        config: the resolved configuration.
        task: the classification task.
        train: the whole training set.
        client_data: the examples of all clients.
        networks: the network of each client [K].
        server_network: the network of the server.
        flower_strategy: the strategy, of fedkd or of Flower.
        optimizer: ``(parameters, lr=...) -> optimizer`` of the clients.
        devices: the devices of all clients.
        num_total_examples: number of training examples of all clients.
        client_digests: hashes of the clients' data, by name, on a server that does not hold these data. None where they are here.
        phase: number of the phase of the run, 0, 1, ..., that the clients' data are of, see :meth:`at`.
        other_phases: the simulations of other phases that have been built, by number.
    """

    config: DictConfig
    task: Task
    train: Examples
    client_data: ClientData
    networks: list[Network]
    server_network: Network
    flower_strategy: FlowerStrategy
    optimizer: OptimizerFactory
    devices: Devices
    num_total_examples: int
    client_digests: dict[str, str] | None = None
    phase: int = 0
    other_phases: dict[int, "Simulation"] = field(default_factory=dict)

    def at(self, server_round: int) -> "Simulation":
        """The simulation with the clients' data of a round. It is the same object in all rounds of a phase, and in a run without drift."""
        views = self.client_data.views
        if views is None or (number := views.phase_of(server_round)) == self.phase:
            return self
        if number not in self.other_phases:
            sizes = [len(indices) for indices in views.partition(number).train]
            self.other_phases[number] = replace(
                self,
                phase=number,
                task=replace(self.task, absent=views.absent(number)),
                client_data=self.client_data.in_phase(number),
                devices=devices_of_sizes(self.config, self.devices, sizes),
                num_total_examples=sum(sizes),
            )
        return self.other_phases[number]

    @property
    def phases(self) -> Sequence[DriftPhase]:
        """The phases of the run. Empty without drift."""
        return () if self.client_data.views is None else self.client_data.views.phases

    @property
    def holds_client_data(self) -> bool:
        """Whether the clients' examples are in this process. The server of a deployment has placeholders of the same number."""
        return self.client_digests is None

    @cached_property
    def can_test_globally(self) -> bool:
        """Whether this process can evaluate the global model: it has test data, and all parts of the model.

        A simulator reads BatchNorm statistics that stay with the clients. The server of a deployment cannot.
        """
        if self.holds_client_data:
            return True
        strategy = self.flower_strategy
        return len(self.global_test) > 0 and not (isinstance(strategy, Strategy) and strategy.local_parameter_names(self.model))

    @cached_property
    def strategy(self) -> Strategy:
        """The strategy, which must be one of fedkd's."""
        assert isinstance(self.flower_strategy, Strategy), "a strategy of Flower has no hooks"
        return self.flower_strategy

    @property
    def global_test(self) -> Examples:
        """The global test set."""
        return self.client_data.global_test

    @property
    def partition(self) -> Partition:
        """The indices of each client's examples."""
        return self.client_data.partition

    @property
    def model(self) -> Classifier:
        """The network of the server. Its parameters are overwritten before every use."""
        return self.server_network.model

    @property
    def initial(self) -> Tensors:
        """All parameters and buffers of the server's network before the first round."""
        return self.server_network.initial

    @property
    def seed(self) -> Seed:
        """The seed of the run."""
        return Seed(self.config.seed)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type of weights and images."""
        return dtype_of(self.config)

    @cached_property
    def execution(self) -> Execution:
        """How local steps are computed."""
        return Execution(self.config.compile, autocast=self.config.precision == "bfloat16")

    @cached_property
    def settings(self) -> SimpleNamespace:
        """The run's own keys as plain values. Reading an OmegaConf key takes microseconds, and every round reads many."""
        return SimpleNamespace(**{str(key): value for key, value in self.config.items() if not isinstance(value, DictConfig)})

    @cached_property
    def hash(self) -> str:
        """The hash that identifies the run, see :func:`fedkd.config.build.config_hash`."""
        return config_hash(self.config, self.digests)

    @cached_property
    def series(self) -> str:
        """The hash without the number of rounds. Runs of one series have the same first rounds."""
        return config_hash(self.config, self.digests, without=("rounds",))

    @cached_property
    def digests(self) -> dict[str, str]:
        """Hashes of the content of data, names of classes, partition, and trace."""
        if self.client_digests is None:
            own = {"train": self.train.digest, "test": self.global_test.digest}
            views = self.client_data.views
            partitions = [self.partition] if views is None else views.partitions
            indices = [index for partition in partitions for index in (*partition.train, *partition.test)]
            digests = {**own, "partition": index_digest(*indices), **self.task.names_digest}
        else:
            digests = {**self.client_digests, **self.task.names_digest}
        if self.client_data.public_data is not None:
            digests["public_data"] = self.client_data.public_data.digest
        if self.devices.trace:
            digests["trace"] = hashlib.sha256(json.dumps(self.devices.trace).encode()).hexdigest()
        return digests

    def client(self, number: int, server_round: int, *, testing: bool = False) -> Client:
        """One client in one round.

        Args:
            number: the client, in 0..N-1.
            server_round: 1, 2, ...
            testing: give the client its local test set instead of its training examples.
        """
        self = self.at(server_round)
        settings, network = self.settings, self.networks[number]
        options = getattr(self.optimizer, "keywords", {})
        return Client(
            id=number,
            task=self.task,
            seed=self.seed / "round" / server_round / "client" / number,
            model=network.model,
            initial=network.initial,
            architecture=network.name,
            data=(self.client_data.local_test if testing else self.client_data.train)[number],
            train_data=self.client_data.train[number] if testing else None,
            num_steps=self.devices.local_steps(number, server_round),
            batch_size=settings.batch_size,
            optimizer=self.optimizer,
            lr=options.get("lr", 0.0),
            momentum=options.get("momentum", 0.0),
            dtype=self.dtype,
            execution=self.execution,
            num_clients=self.config.num_clients,
            num_total_examples=self.num_total_examples,
            public_data=self.client_data.public_data,
            has_server_network=network.model is self.model,
            drop_last=self.devices.drop_last,
        )

    def workload(self, client: int) -> tuple[int, int]:
        """Batch size and number of local steps of a client in a round without stragglers."""
        return self.devices.workloads[client]

    def num_examples_per_round(self, client: int, server_round: int) -> int:
        """The number of examples that a client processes in its local steps of a round."""
        return self.at(server_round).devices.num_processed_examples(client, server_round)

    def vmap_group(self, client: int) -> tuple[str, int, int]:
        """Architecture, batch size, and where the last batch of a pass is smaller, the number of examples.

        Only clients with equal values can train as one program.
        """
        size, number = self.workload(client)[0], self.devices.num_examples[client]
        return self.networks[client].name, size, 0 if self.devices.drop_last or number % max(size, 1) == 0 else number

    def split_into_chunks(self, clients: Sequence[int], size: int, server_round: int) -> list[list[int]]:
        """Chunks of clients that train as one program each.

        The clients of a chunk have the same architecture and batch size, and similar numbers of steps. Chunks do not depend on the number
        of workers, so neither do results. Networks with dropout or recurrent layers train one client at a time for every ``size``.

        Args:
            clients: the clients that train in the round.
            size: maximum number of clients per chunk, >= 1.
            server_round: 1, 2, ...
        """
        groups: dict[tuple[str, int, int], list[int]] = {}
        simulation = self.at(server_round)
        if size > 1:
            clients = sorted(clients, key=lambda client: (-simulation.devices.local_steps(client, server_round), client))
        for client in clients:
            groups.setdefault(simulation.vmap_group(client), []).append(client)
        sizes = {key: 1 if trains_alone(self.networks[group[0]].model) else size for key, group in groups.items()}
        return [group[i : i + sizes[key]] for key, group in groups.items() for i in range(0, len(group), sizes[key])]

    def to_model_tensors(self, arrays: ArrayRecord) -> Tensors:
        """The model in a message of one of Flower's strategies, with the types of the server's network.

        Flower averages integer buffers as floats, so they are rounded here. Frozen parameters keep their bits.
        """
        tensors = keep_frozen(self.model, self.initial, arrays.to_torch_state_dict())
        rounded = {key: tensors[key] if value.is_floating_point() else tensors[key].round() for key, value in self.initial.items()}
        return {key: rounded[key].to(value.device, value.dtype) for key, value in self.initial.items()}

    def federation_at(self, server_round: int) -> Federation:
        """The settings of the run in a round. It is the same object in all rounds of a phase."""
        return self.at(server_round).own_federation

    @cached_property
    def own_federation(self) -> Federation:
        """The settings of the run in this phase."""
        return self.federation()

    def federation(self) -> Federation:
        """The settings of the run that its strategy needs."""
        config = self.config
        server = Server(
            task=self.task,
            seed=self.seed,
            model=self.model,
            initial=self.initial,
            num_clients=config.num_clients,
            batch_size=config.evaluation.batch_size,
            dtype=self.dtype,
            public_data=self.client_data.public_data,
            validation=self.client_data.validation,
            client_networks=[network.model for network in self.networks],
        )
        return Federation(
            server=server,
            clients_per_round=config.clients_per_round,
            devices=self.devices,
            on_client_failure=config.on_client_failure,
            retries=config.retries,
            evaluate_every=config.evaluation.every,
            check=self.reply_check(),
            evaluated_clients=None if config.evaluation.clients is None else self.evaluated_clients,
            by_round=self.federation_at if self.phases else None,
        )

    def evaluated_clients(self, server_round: int) -> list[int]:
        """The clients whose local test sets are evaluated after a round, ascending. They depend on seed and round alone.

        With ``evaluation.clients`` these are so many of the clients with local test examples, or all where there are fewer.
        """
        number = self.config.evaluation.clients
        if number in (None, self.config.num_clients):
            return list(range(self.config.num_clients))
        tested = [client for client, examples in enumerate(self.at(server_round).client_data.local_test) if len(examples)]
        rng = (self.seed / "round" / server_round / "evaluated_clients").numpy()
        return sorted(rng.choice(tested, min(number, len(tested)), replace=False).tolist())

    def reply_check(self) -> ReplyCheck:
        """The check of all replies of clients."""
        strategy, data = self.flower_strategy, self.client_data
        expect = (
            partial(expected_update, strategy, self.client) if isinstance(strategy, Strategy) else partial(expected_model, self.initial)
        )
        return ReplyCheck(
            expect,
            [network.name for network in self.networks],
            [len(examples) for examples in data.train],
            [len(examples) * self.task.decisions for examples in data.local_test],
            self.config.max_update_norm,
        )


def index_digest(*indices: np.ndarray) -> str:
    """Hash of vectors of indices."""
    digest = hashlib.sha256()
    for index in indices:
        digest.update(len(index).to_bytes(8, "big") + index.astype("<i8").tobytes())
    return digest.hexdigest()


def dtype_of(config: DictConfig) -> torch.dtype:
    """The type of weights and images for ``config.precision``. With ``bfloat16`` the weights stay in float32."""
    return torch.float64 if config.precision == "float64" else torch.float32


@lru_cache(maxsize=2)
def build_simulation(
    text: str, only_client: int | None = None, absent: tuple[int, ...] = (), num_total_examples: int | None = None
) -> Simulation:
    """The simulation of a configuration. It is built by the first call in a process and kept for the next ones.

    Args:
        text: the resolved configuration as YAML.
        only_client: the client to which the data set belongs, on a node with data of its own. None: the partition divides it.
        absent: classes without training examples at any client, where ``only_client`` is set.
        num_total_examples: number of training examples of all clients, where ``only_client`` is set.

    Raises:
        ConfigError: a key has a wrong value, or parts do not fit together.
    """
    config = OmegaConf.create(text)
    assert isinstance(config, DictConfig)
    extend_sys_path(config.searchpath)  # so that workers and nodes find the user's modules too
    check_run(config)
    device = config.device
    require(device == "cpu" or torch.cuda.is_available(), "device", "must be available on this machine (it has no GPU)", device)
    torch.set_num_threads(1)  # the number of threads changes rounding
    (task, train, test), seed = read_data(config), Seed(config.seed)
    strategy, optimizer, systems = build_strategy(config), build(config, "optimizer"), build(config, "systems")
    check_task(config, strategy, task)
    client_data = make_client_data(config, task, train, test, seed, only_client)
    num_examples = [len(indices) for indices in client_data.partition.train]
    if only_client is None:
        task = task.with_absent_classes(train.y[np.concatenate(client_data.partition.train)])
        check_phases(config, strategy, systems, client_data, seed)
    else:
        task = replace(task, absent=absent)
    networks, server_network = make_networks(config, task, dtype_of(config), seed, strategy)
    check_compatibility(config, strategy, optimizer, networks, client_data)
    if only_client is None:
        devices = make_run_devices(config, strategy, systems, num_examples, seed)
    else:  # the sizes of the other clients are not known here, and the server has checked them
        devices = Devices(systems, seed, client_workloads(config, num_examples), num_examples, drop_last=drops_last(config))
    total = sum(num_examples) if num_total_examples is None else num_total_examples
    return Simulation(config, task, train.to(device), client_data, networks, server_network, strategy, optimizer, devices, total)


def simulation_from_run_config(run_config: Mapping[str, object]) -> Simulation:
    """The simulation of a run configuration of Flower. A node that is one client of a ServerApp of others builds it in this way.

    Raises:
        ConfigError: a key has a wrong value, or parts do not fit together.
    """
    return build_simulation(OmegaConf.to_yaml(compose(run_config_words(run_config)), resolve=True))
