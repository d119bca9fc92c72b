"""Label skew: each class is divided among the clients by proportions ~ Dirichlet(alpha)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedkd.partition.common import (
    allocate,
    assign_examples,
    check_arguments,
    check_draw_parameters,
    draw_until_valid,
    indices_by_class,
    local_test_shards,
)
from fedkd.types import Partition

log = logging.getLogger("fedkd")


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """For each class, proportions over clients ~ Dirichlet(alpha, ..., alpha). All training examples are used.

    The proportions of all classes are drawn again until every client has ``min_size`` examples. Numbers of examples are rounded at random,
    so that no client is favored. The classes are shuffled after the last draw. Local test sets:
    :func:`fedkd.partition.common.local_test_shards`.

    Args:
        alpha: > 0. With a small value a class belongs to few clients; with a large value all clients have the same distribution.
        min_size: minimum number of training examples of a client, >= 1.
        max_draws: maximum number of draws, >= 1.

    Raises:
        ConfigError: a value is out of range; on calling if ``min_size`` is not reached.
    """

    by_label: ClassVar[bool] = True
    """Examples are divided by their classes."""

    alpha: float
    min_size: int
    max_draws: int

    def __post_init__(self) -> None:
        check_draw_parameters(self.alpha, self.min_size, self.max_draws)

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide the examples.

        Args:
            train_labels: labels of the training examples [N].
            test_labels: labels of the test examples [M].
            num_clients: number of clients, K.
            rng: draws proportions and shuffles the examples.

        Raises:
            ConfigError: ``min_size`` is impossible, or was not reached within ``max_draws`` draws.
        """
        check_arguments(train_labels, test_labels, num_clients, self.min_size)
        by_class = indices_by_class(train_labels)
        numbers = [len(indices) for indices in by_class]
        sizes, num_draws = draw_until_valid(lambda: self.draw_sizes(numbers, num_clients, rng), self.min_size, self.max_draws)
        if num_draws > 1:
            log.info("partition: the split of draw %d is the first with at least %d examples for every client", num_draws, self.min_size)
        train = assign_examples(by_class, sizes, rng)
        return Partition(train, local_test_shards(train, train_labels, test_labels), num_draws)

    def draw_sizes(self, numbers: Sequence[int], num_clients: int, rng: np.random.Generator) -> np.ndarray | None:
        """One draw of the number of examples of each class for each client [C, K]; None if it failed.

        Args:
            numbers: number of examples of each class [C].
            num_clients: number of clients, K.
            rng: draws the proportions.
        """
        proportions = rng.dirichlet([self.alpha] * num_clients, len(numbers))
        return np.stack([allocate(p, number, rng.random()) for p, number in zip(proportions, numbers)])


@dataclass(frozen=True, kw_only=True)
class BalancedDirichlet(Dirichlet):
    """NIID-Bench's split: as :class:`Dirichlet`, but a client that holds N / K examples gets no more.

    Class by class in order, the proportions of such clients are set to zero and the others are divided by their sum. MOON, DENSE, DFRD and
    the benchmarks PFLlib and HtFLlib use this split. The cumulative sums of the proportions are rounded down, as in the public code.

    Source:
        Li, Diao, Chen, He: Federated learning on non-IID data silos: An experimental study, ICDE 2022.
        Public code: Xtra-Computing/NIID-Bench @ 61b901a.

    Args:
        alpha: > 0; a smaller value gives each client fewer classes.
        min_size: minimum number of training examples of a client, >= 1. 10 in the public code.
        max_draws: maximum number of draws, >= 1.

    Raises:
        ConfigError: a value is out of range; on calling if ``min_size`` is not reached.
    """

    def draw_sizes(self, numbers: Sequence[int], num_clients: int, rng: np.random.Generator) -> np.ndarray | None:
        """See :meth:`Dirichlet.draw_sizes`."""
        return balanced_sizes(rng.dirichlet([self.alpha] * num_clients, len(numbers)), numbers)


def balanced_sizes(proportions: np.ndarray, numbers: Sequence[int]) -> np.ndarray | None:
    """The number of examples of each class for each client [C, K].

    Args:
        proportions: of each class over clients [C, K].
        numbers: number of examples of each class [C].

    Returns:
        The sizes; None if all clients that hold fewer than N / K examples have proportion 0.
    """
    sizes = np.zeros(proportions.shape, np.int64)
    full = sum(numbers) / proportions.shape[1]
    for label, number in enumerate(numbers):
        left = proportions[label] * (sizes.sum(axis=0) < full)
        if not left.sum() > 0:
            return None
        cuts = (np.cumsum(left / left.sum()) * number).astype(np.int64)[:-1]
        sizes[label] = np.diff(cuts, prepend=0, append=number)
    return sizes
