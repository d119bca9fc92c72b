"""Uneven labels: each class is divided among the clients by proportions ~ Dirichlet(alpha)."""

import logging
from dataclasses import dataclass

import numpy as np

from fedkd.partition.common import check_arguments, check_draw_parameters, allocate, assign_examples, test_shards_of_own_classes, indices_by_class, draw_until_valid
from fedkd.types import Partition

log = logging.getLogger("fedkd")


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """For each class, proportions over clients ~ Dirichlet(alpha, ..., alpha); all training examples are given away.

    The proportions of all classes are drawn again, from the same stream, until every client holds ``min_size`` examples; the
    classes are shuffled once, after that. Fractions of examples are rounded at random, so that no client is favoured.
    Test shards: ``shards.owned``.

    Args:
        alpha: > 0; towards 0 a class belongs to one client, towards infinity all clients are alike.
        min_size: the least number of training examples of a client, >= 1.
        max_draws: how many draws to try, >= 1.
    """

    alpha: float
    min_size: int
    max_draws: int

    def __post_init__(self) -> None:
        check_draw_parameters(self.alpha, self.min_size, self.max_draws)

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Labels [N] and [M] of the training and test examples, the number of clients K, and the randomness of the draws.

        Raises:
            ConfigError: when ``min_size`` cannot be reached, or was not within ``max_draws`` draws.
        """
        check_arguments(train_labels, test_labels, num_clients, self.min_size)
        classes = indices_by_class(train_labels)

        def draw() -> np.ndarray:  # [C, K]
            proportions = rng.dirichlet([self.alpha] * num_clients, len(classes))
            return np.stack([allocate(p, len(pool), rng.random()) for p, pool in zip(proportions, classes)])

        sizes, num_draws = draw_until_valid(draw, self.min_size, self.max_draws)
        if num_draws > 1:
            log.info("partition: the split of draw %d is the first with at least %d examples for every client", num_draws, self.min_size)
        train = assign_examples(classes, sizes, rng)
        return Partition(train, test_shards_of_own_classes(train, train_labels, test_labels), num_draws)
