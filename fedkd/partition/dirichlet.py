"""Uneven labels: each class is divided among the clients by proportions ~ Dirichlet(alpha)."""

import logging
from dataclasses import dataclass

import numpy as np

from fedkd.partition.common import check, check_rules, cut, deal, owned_test_shards, pools, redraw
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
        check_rules(self.alpha, self.min_size, self.max_draws)

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Labels [N] and [M] of the training and test examples, the number of clients K, and the randomness of the draws.

        Raises:
            ConfigError: when ``min_size`` cannot be reached, or was not within ``max_draws`` draws.
        """
        check(train_labels, test_labels, num_clients, self.min_size)
        classes = pools(train_labels)

        def draw() -> np.ndarray:  # [C, K]
            proportions = rng.dirichlet([self.alpha] * num_clients, len(classes))
            return np.stack([cut(p, len(pool), rng.random()) for p, pool in zip(proportions, classes)])

        sizes, num_draws = redraw(draw, self.min_size, self.max_draws)
        if num_draws > 1:
            log.info("partition: the split of draw %d is the first with at least %d examples for every client", num_draws, self.min_size)
        train = deal(classes, sizes, rng)
        return Partition(train, owned_test_shards(train, train_labels, test_labels), num_draws)
