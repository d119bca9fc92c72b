"""Who holds which examples in each view of a drift, and in each phase of a run. A run without drift has one view and no phases."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from omegaconf import DictConfig

from fedkd.config.build import build, call_part
from fedkd.data.drift import ClassIncremental, Drift, DriftPhase, NoDrift, ViewDrift
from fedkd.errors import ConfigError, require
from fedkd.partition.common import divide
from fedkd.partition.from_file import FromFile
from fedkd.seed import Seed
from fedkd.types import ExampleAttributes, Examples, Partition

ClientExamples = tuple[list[Examples], list[Examples]]
"""Training examples and local test set of each client [K]."""


@dataclass(frozen=True)
class Pools:
    """The examples that a partition may divide again.

    Args:
        train: the training set.
        test: the examples that local test sets are taken from.
        train_indices: the training examples that are not held out, ascending.
        test_indices: the examples of ``test`` that models may be tested on, ascending.
    """

    train: Examples
    test: Examples
    train_indices: np.ndarray
    test_indices: np.ndarray


@dataclass(frozen=True)
class Views:
    """The data of all clients in every view, made when they are first asked for.

    Args:
        config: the resolved configuration of the run.
        drift: the rule.
        num_classes: number of classes, C.
        seed: seed of the run.
        pools: all examples.
        partitions: the partition of each view.
        phases: the phases of the run. Empty without drift.
        classes: the classes with training examples in view 0, or in any task, ascending.
    """

    config: DictConfig
    drift: Drift
    num_classes: int
    seed: Seed
    pools: Pools
    partitions: list[Partition]
    phases: list[DriftPhase]
    classes: list[int]
    _made: dict[int, ClientExamples] = field(default_factory=dict)

    def phase_of(self, server_round: int) -> int:
        """The number of a round's phase, 0, 1, ..."""
        return max(0, sum(phase.first_round <= server_round for phase in self.phases) - 1)

    def views_of(self, phase: int) -> tuple[int, ...]:
        """The view of each client [K] in a phase."""
        return self.phases[phase].views if self.phases else (0,) * len(self.partitions[0].train)

    def partition(self, phase: int) -> Partition:
        """The indices of each client's examples in a phase."""
        views = [self.partitions[view] for view in self.views_of(phase)]
        train, test = ([getattr(view, part)[client] for client, view in enumerate(views)] for part in ("train", "test"))
        return Partition(train, test, views[0].num_draws)

    def examples(self, phase: int) -> ClientExamples:
        """The examples of each client in a phase."""
        views = self.views_of(phase)
        made = {view: self.view(view) for view in set(views)}
        return [made[view][0][client] for client, view in enumerate(views)], [made[view][1][client] for client, view in enumerate(views)]

    def view(self, number: int) -> ClientExamples:
        """The examples of all clients in a view, with feature shift, label noise and renamed classes."""
        if number not in self._made:
            pools, partition, stream = self.pools, self.partitions[number], self.seed / "shift"
            kind = self.drift.shift if isinstance(self.drift, ViewDrift) else "constant"
            if kind == "begin" and number == 0:
                made = [pools.train.subset(index) for index in partition.train], [pools.test.subset(index) for index in partition.test]
            else:
                stream = self.seed / "drift" / "shift" if kind == "redraw" and number == 1 else stream
                made = call_part("shift", build(self.config, "shift"), pools.train, pools.test, partition, self.num_classes, stream)
            self._made[number] = self.renamed(made) if number else made
        return self._made[number]

    def renamed(self, examples: ClientExamples) -> ClientExamples:
        """The examples of view 1 with the new names of the classes at the clients that have them."""
        if not isinstance(self.drift, ViewDrift) or self.drift.swapped_client_fraction == 0:
            return examples
        seed = self.seed / "drift"
        names = torch.from_numpy(self.drift.permutation(self.classes, self.num_classes, seed / "classes")).to(examples[0][0].y.device)
        clients = self.drift.swapped_clients(len(examples[0]), seed / "clients")
        train, test = (
            [replace(own, y=names[own.y]) if client in clients else own for client, own in enumerate(shards)] for shards in examples
        )
        return train, test

    def absent(self, phase: int) -> tuple[int, ...]:
        """The classes without training examples in this phase and in all before, ascending."""
        views = sorted({view for number in range(phase + 1) for view in self.views_of(number)})
        indices = np.concatenate([index for view in views for index in self.partitions[view].train])
        counts = np.bincount(self.pools.train.labels.cpu().numpy()[indices], minlength=self.num_classes)
        return tuple(np.flatnonzero(counts == 0).tolist())

    def union(self) -> Partition:
        """The examples that each client holds in any view."""
        by_client = zip(*(view.train for view in self.partitions)), zip(*(view.test for view in self.partitions))
        train, test = ([np.unique(np.concatenate(shards)) for shards in part] for part in by_client)
        return Partition(train, test)


def make_views(config: DictConfig, num_classes: int, pools: Pools, partition: Partition, seed: Seed) -> Views:
    """The views of a run, with the partition of each.

    Args:
        config: the resolved configuration of the run.
        num_classes: number of classes, C.
        pools: the examples that may be divided again.
        partition: the partition of a run without drift, which is view 0 unless classes arrive as tasks.
        seed: seed of the run.

    Raises:
        ConfigError: the drift does not fit the run, or a view cannot be divided.
    """
    drift = build(config, "drift") if config.get("drift") else NoDrift()
    require(isinstance(drift, Drift), "drift._target_", "must be a drift of fedkd.data.drift, or a subclass", type(drift).__name__)
    labels = pools.train.labels.cpu().numpy()
    incremental = isinstance(drift, ClassIncremental)
    divided = pools.train_indices if incremental else np.concatenate(partition.train)
    classes = np.unique(labels[divided]).tolist()
    phases = call_part("drift", drift.phases, config.rounds, config.num_clients, classes, seed / "drift")
    partitions = [partition]
    if incremental:
        partitions = draw_tasks(config, pools, [phase.task for phase in phases], partition, seed)
    elif isinstance(drift, ViewDrift):
        partitions.append(partition)
        if drift.partition == "redraw":
            partitions[1] = draw(config, pools, pools.train_indices, pools.test_indices, 1, seed)
            same = all(np.array_equal(*pair) for pair in zip(partition.train, partitions[1].train))
            name = config.choices.get("partition", config.partition["_target_"])
            require(not same, "drift.partition", f"must be constant with partition {name}, which draws nothing", drift.partition)
    return Views(config, drift, num_classes, seed, pools, partitions, phases, classes)


def draw_tasks(config: DictConfig, pools: Pools, tasks: Sequence[Sequence[int]], whole: Partition, seed: Seed) -> list[Partition]:
    """The partition of each task. Local test sets hold the test examples of all tasks so far.

    A partition from a file is not drawn: its clients keep those of their examples that are of the task.

    Args:
        config: the resolved configuration of the run.
        pools: all examples.
        tasks: the classes of each task.
        whole: the partition of a run without drift.
        seed: seed of the run.

    Raises:
        ConfigError: a task cannot be divided.
    """
    train_y, test_y = pools.train.labels.cpu().numpy(), pools.test.labels.cpu().numpy()
    partitions: list[Partition] = []
    for number, task in enumerate(tasks):
        train, test = (index[np.isin(y[index], task)] for index, y in ((pools.train_indices, train_y), (pools.test_indices, test_y)))
        if isinstance(build(config, "partition"), FromFile):
            drawn = Partition(
                [np.intersect1d(index, train) for index in whole.train], [np.intersect1d(index, test) for index in whole.test]
            )
        else:
            drawn = draw(config, pools, train, test, number, seed)
        if partitions and config.evaluation.local_test != "all_examples":
            drawn = replace(drawn, test=[np.union1d(before, new) for before, new in zip(partitions[-1].test, drawn.test)])
        elif partitions:
            drawn = replace(drawn, test=[np.union1d(partitions[-1].test[0], test)] * config.num_clients)
        partitions.append(drawn)
    return partitions


def draw(config: DictConfig, pools: Pools, train: np.ndarray, test: np.ndarray, view: int, seed: Seed) -> Partition:
    """A view's own partition of some examples.

    Args:
        config: the resolved configuration of the run.
        pools: all examples.
        train: indices of the training examples to divide, ascending.
        test: indices of the test examples to divide, ascending.
        view: number of the view.
        seed: seed of the run.

    Raises:
        ConfigError: they cannot be divided in this way.
    """
    attributes, stream = (pools.train.subset(train).attributes, pools.test.subset(test).attributes), seed / "drift" / "partition" / view
    try:
        found = divide_among_clients(config, *attributes, stream)
    except ConfigError as error:
        raise ConfigError(f"{error} (drift, view {view}: {len(train)} training examples)") from error
    tests = [test] * config.num_clients if config.evaluation.local_test == "all_examples" else [test[index] for index in found.test]
    return replace(found, train=[train[index] for index in found.train], test=tests)


def divide_among_clients(config: DictConfig, train: ExampleAttributes, test: ExampleAttributes, stream: Seed) -> Partition:
    """The indices of each client's examples by ``config.partition``.

    Args:
        config: the resolved configuration of the run.
        train: the training examples.
        test: the test examples.
        stream: random stream of the partition.

    Raises:
        ConfigError: the data cannot be divided in this way.
    """
    return call_part("partition", divide, build(config, "partition"), train, test, config.num_clients, stream.numpy())
