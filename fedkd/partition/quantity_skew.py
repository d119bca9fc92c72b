"""Quantity skew: clients have different numbers of examples with the same distribution of labels."""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedkd.errors import require
from fedkd.partition.common import allocate, check_arguments, check_draw_parameters, draw_until_valid, local_test_shards
from fedkd.types import Partition

log = logging.getLogger("fedkd")


@dataclass(frozen=True, kw_only=True)
class QuantitySkew:
    """Proportions of the training examples ~ Dirichlet(alpha, ..., alpha), or proportional to exp(sigma * normal). All examples are used.

    Examples are assigned at random, independently of their labels. The proportions are drawn again until every client has ``min_size``
    examples. The Dirichlet form is the quantity skew of Li, Diao, Chen and He (ICDE 2022). Local test sets:
    :func:`fedkd.partition.common.local_test_shards`.

    Args:
        distribution: ``dirichlet`` or ``lognormal``.
        alpha: parameter of ``dirichlet``, > 0; a smaller value gives more different sizes.
        sigma: parameter of ``lognormal``, >= 0; 0 gives equal sizes.
        min_size: minimum number of training examples of a client, >= 1.
        max_draws: maximum number of draws, >= 1.

    Raises:
        ConfigError: a value is out of range; on calling if ``min_size`` is not reached.
    """

    distribution: Literal["dirichlet", "lognormal"]
    alpha: float
    sigma: float
    min_size: int
    max_draws: int

    def __post_init__(self) -> None:
        check_draw_parameters(self.alpha, self.min_size, self.max_draws)
        require(0 <= self.sigma < np.inf, "sigma", "must be >= 0 (0: equal sizes) and finite", self.sigma)
        known = self.distribution in ("dirichlet", "lognormal")
        require(known, "distribution", "must be one of dirichlet, lognormal", self.distribution)

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

        def draw() -> np.ndarray:  # [1, K]
            proportions = (
                rng.dirichlet([self.alpha] * num_clients)
                if self.distribution == "dirichlet"
                else np.exp(self.sigma * rng.standard_normal(num_clients))
            )
            return allocate(proportions, len(train_labels), rng.random())[None]

        sizes, num_draws = draw_until_valid(draw, self.min_size, self.max_draws)
        if num_draws > 1:
            log.info("partition: the split of draw %d is the first with at least %d examples for every client", num_draws, self.min_size)
        shards = np.split(rng.permutation(len(train_labels)), np.cumsum(sizes[0])[:-1])
        train = [np.sort(shard).astype(np.int64) for shard in shards]
        return Partition(train, local_test_shards(train, train_labels, test_labels), num_draws)
