"""Label skew: each class is divided among the clients by proportions ~ Dirichlet(alpha)."""

import logging
from dataclasses import dataclass

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

        def draw() -> np.ndarray:  # [C, K]
            proportions = rng.dirichlet([self.alpha] * num_clients, len(by_class))
            return np.stack([allocate(p, len(indices), rng.random()) for p, indices in zip(proportions, by_class)])

        sizes, num_draws = draw_until_valid(draw, self.min_size, self.max_draws)
        if num_draws > 1:
            log.info("partition: the split of draw %d is the first with at least %d examples for every client", num_draws, self.min_size)
        train = assign_examples(by_class, sizes, rng)
        return Partition(train, local_test_shards(train, train_labels, test_labels), num_draws)
