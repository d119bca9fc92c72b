"""Drift: data of clients that change during a run. A drift says in which round which client has which view of the data.

A view is one assignment of examples to all clients, with one feature shift and one naming of the classes. View 0 is the data of a run
without drift. Consecutive rounds in which no client changes its view are a phase.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedkd.errors import require
from fedkd.seed import Seed


@dataclass(frozen=True)
class DriftPhase:
    """Consecutive rounds in which the data of all clients stay the same.

    Args:
        first_round: its first round, 1, 2, ...
        views: the view of each client [K], 0, 1, ...
        task: the classes that arrive with this phase. Empty where classes do not arrive as tasks.
    """

    first_round: int
    views: tuple[int, ...]
    task: tuple[int, ...] = ()


class Drift(ABC):
    """A rule for the data of clients by round."""

    @abstractmethod
    def phases(self, rounds: int, num_clients: int, classes: Sequence[int], seed: Seed) -> list[DriftPhase]:
        """The phases of a run, in order. The first one begins with round 1. An empty list is a run without drift.

        Args:
            rounds: number of rounds of the run.
            num_clients: number of clients, K.
            classes: the classes with training examples, ascending.
            seed: random stream.

        Raises:
            ConfigError: a parameter does not fit the run.
        """


@dataclass(frozen=True)
class NoDrift(Drift):
    """The data of all clients stay the same."""

    def phases(self, rounds: int, num_clients: int, classes: Sequence[int], seed: Seed) -> list[DriftPhase]:
        """None."""
        return []


@dataclass(frozen=True, kw_only=True)
class ViewDrift(Drift):
    """Drift between two views of the data, 0 before the change and 1 after it. What differs between them is a choice; choices combine.

    Args:
        partition: ``redraw``: the partition is drawn again with the same parameters, so that p(y) of each client changes; ``constant``.
        shift: the configured feature shift and label noise, p(x): ``constant``; ``redraw``: the levels of each client are drawn again;
            ``begin``: view 0 has none of them.
        swapped_client_fraction: fraction of the clients whose classes are renamed in view 1, p(y|x), 0..1. All of these clients have the
            same permutation, in which no class keeps its name. Their training examples and local test sets are renamed, and the global
            test set is not.
    """

    length_key: ClassVar[str] = "duration"
    """The parameter on which the number of rounds in which data change depends."""

    partition: Literal["redraw", "constant"]
    shift: Literal["constant", "redraw", "begin"]
    swapped_client_fraction: float

    def __post_init__(self) -> None:
        for name, known in (("partition", ("redraw", "constant")), ("shift", ("constant", "redraw", "begin"))):
            require(getattr(self, name) in known, name, f"must be one of {', '.join(known)}", getattr(self, name))
        share = self.swapped_client_fraction
        require(0 <= share <= 1, "swapped_client_fraction", "must be in 0..1", share)
        changes = self.partition != "constant" or self.shift != "constant" or share > 0
        rule = "must be redraw, or shift redraw or begin, or swapped_client_fraction > 0, so that something drifts"
        require(changes, "partition", rule, self.partition)

    def phases(self, rounds: int, num_clients: int, classes: Sequence[int], seed: Seed) -> list[DriftPhase]:
        """See :meth:`Drift.phases`. A phase ends where a client changes its view."""
        phases: list[DriftPhase] = []
        changes = self.changes(rounds)
        rule = f"must give at most {MAX_CHANGES} rounds in which data change"
        require(len(changes) <= MAX_CHANGES, self.length_key, rule, getattr(self, self.length_key, None))
        for server_round in (1, *changes):
            views = self.views(server_round, rounds, num_clients, seed)
            if not phases or views != phases[-1].views:
                phases.append(DriftPhase(server_round, views))
        require(len(phases) > 1, "partition", f"must change the data of a client within rounds ({rounds})", "no change")
        return phases

    @abstractmethod
    def changes(self, rounds: int) -> range:
        """The rounds from 2 on in which a client may change its view."""

    @abstractmethod
    def views(self, server_round: int, rounds: int, num_clients: int, seed: Seed) -> tuple[int, ...]:
        """The view of each client in a round, 0 or 1."""

    def permutation(self, classes: Sequence[int], num_classes: int, seed: Seed) -> np.ndarray:  # [C], int64
        """The new name of each class. Classes without training examples keep theirs."""
        names, order = np.arange(num_classes), seed.numpy().permutation(np.asarray(classes, dtype=np.int64))
        names[order] = np.roll(order, 1)
        return names

    def swapped_clients(self, num_clients: int, seed: Seed) -> frozenset[int]:
        """The clients whose classes are renamed in view 1."""
        number = int(self.swapped_client_fraction * num_clients + 0.5)
        return frozenset(seed.numpy().permutation(num_clients)[:number].tolist())


MAX_CHANGES = 10_000
"""Rounds of a run in which data may change."""


def change_round(value: int | None, rounds: int) -> int:
    """The first round after a change: ``value``, or the first round of the second half where it is null.

    Raises:
        ConfigError: no round lies before it, or it is later than the last round.
    """
    server_round = rounds // 2 + 1 if value is None else value
    require(2 <= server_round <= rounds, "round", f"must be in 2..rounds ({rounds}), or null for the second half", server_round)
    return server_round


@dataclass(frozen=True, kw_only=True)
class SuddenDrift(ViewDrift):
    """All clients have view 1 from one round on.

    Args:
        round: the first round of view 1, >= 2; null: the first one of the second half.
    """

    round: int | None

    def changes(self, rounds: int) -> range:
        """See :meth:`ViewDrift.changes`."""
        begin = change_round(self.round, rounds)
        return range(begin, begin + 1)

    def views(self, server_round: int, rounds: int, num_clients: int, seed: Seed) -> tuple[int, ...]:
        """See :meth:`ViewDrift.views`."""
        return (int(server_round >= change_round(self.round, rounds)),) * num_clients


@dataclass(frozen=True, kw_only=True)
class LongDrift(ViewDrift):
    """A change that takes several rounds.

    Args:
        round: the first round of the change, >= 2; null: the first one of the second half.
        duration: rounds of the change, >= 1.
    """

    round: int | None
    duration: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.duration >= 1, "duration", "must be >= 1 rounds", self.duration)


@dataclass(frozen=True, kw_only=True)
class GradualDrift(LongDrift):
    """The probability of view 1 grows linearly. Each client draws its view in each round of the change, and holds all of it.

    Args:
        round: the first round in which a client can have view 1, >= 2; null: the first one of the second half.
        duration: rounds of the change, >= 1. In the i-th of them the probability of view 1 is i / (duration + 1).
    """

    def changes(self, rounds: int) -> range:
        """See :meth:`ViewDrift.changes`."""
        begin = change_round(self.round, rounds)
        return range(begin, min(begin + self.duration + 1, rounds + 1))

    def views(self, server_round: int, rounds: int, num_clients: int, seed: Seed) -> tuple[int, ...]:
        """See :meth:`ViewDrift.views`."""
        place = server_round - change_round(self.round, rounds) + 1
        if not 1 <= place <= self.duration:
            return (int(place > 0),) * num_clients
        drawn = (seed / "round" / server_round).numpy().random(num_clients)
        return tuple((drawn < place / (self.duration + 1)).astype(int).tolist())


@dataclass(frozen=True, kw_only=True)
class RecurringDrift(ViewDrift):
    """The views take turns: all clients have view 0 for ``period`` rounds, then view 1 for as many, and so on.

    Args:
        period: rounds of a turn, >= 1.
    """

    length_key: ClassVar[str] = "period"
    period: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.period >= 1, "period", "must be >= 1 rounds", self.period)

    def changes(self, rounds: int) -> range:
        """See :meth:`ViewDrift.changes`."""
        require(self.period < rounds, "period", f"must be less than rounds ({rounds}), so that the data change", self.period)
        return range(1 + self.period, rounds + 1, self.period)

    def views(self, server_round: int, rounds: int, num_clients: int, seed: Seed) -> tuple[int, ...]:
        """See :meth:`ViewDrift.views`."""
        return ((server_round - 1) // self.period % 2,) * num_clients


@dataclass(frozen=True, kw_only=True)
class StaggeredDrift(LongDrift):
    """The clients change to view 1 one after the other, in an order that is drawn once, at equal distances.

    Args:
        round: the round in which the first client changes, >= 2; null: the first one of the second half.
        duration: rounds in which all clients change, >= 1.
    """

    def changes(self, rounds: int) -> range:
        """See :meth:`ViewDrift.changes`."""
        begin = change_round(self.round, rounds)
        return range(begin, min(begin + self.duration, rounds + 1))

    def views(self, server_round: int, rounds: int, num_clients: int, seed: Seed) -> tuple[int, ...]:
        """See :meth:`ViewDrift.views`."""
        place = server_round - change_round(self.round, rounds)
        order = (seed / "staggered").numpy().permutation(num_clients)
        return tuple((place >= order * self.duration // num_clients).astype(int).tolist())


@dataclass(frozen=True, kw_only=True)
class ClassIncremental(Drift):
    """Classes arrive as tasks. In each task the partition divides the examples of its classes among all clients, drawn anew.

    Clients keep no examples of earlier tasks. A client's local test set has its test examples of all tasks so far. The network has an
    output for every class from the beginning, and generators draw the classes that have arrived.

    Args:
        num_tasks: number of tasks, >= 2. The rounds and the classes are divided among them evenly.
        order_seed: root of the order of the classes, any integer; null: the seed of the run.
    """

    num_tasks: int
    order_seed: int | None

    def __post_init__(self) -> None:
        require(self.num_tasks >= 2, "num_tasks", "must be >= 2", self.num_tasks)

    def phases(self, rounds: int, num_clients: int, classes: Sequence[int], seed: Seed) -> list[DriftPhase]:
        """See :meth:`Drift.phases`. Each task is one phase."""
        for name, number in (("classes with training examples", len(classes)), ("rounds", rounds)):
            require(self.num_tasks <= number, "num_tasks", f"must be at most the number of {name} ({number})", self.num_tasks)
        root = seed if self.order_seed is None else Seed(self.order_seed) / "drift"
        order = (root / "order").numpy().permutation(np.asarray(classes, dtype=np.int64))
        tasks = [tuple(sorted(task.tolist())) for task in np.array_split(order, self.num_tasks)]
        return [DriftPhase(number * rounds // self.num_tasks + 1, (number,) * num_clients, task) for number, task in enumerate(tasks)]
