"""Uneven sizes, like labels: some clients hold many examples, others few."""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedkd.errors import require
from fedkd.partition.common import check_arguments, check_draw_parameters, allocate, test_shards_of_own_classes, draw_until_valid
from fedkd.types import Partition

log = logging.getLogger("fedkd")


@dataclass(frozen=True, kw_only=True)
class QuantitySkew:
    """Shares of the training examples ~ Dirichlet(alpha, ..., alpha), or in proportion to exp(sigma * normal); all are given away.

    Whose examples are whose is drawn without a look at labels. The shares are drawn again until every client holds ``min_size``. The
    first is the quantity skew of Li, Diao, Chen, He (ICDE 2022). Test shards: ``shards.owned``.

    Args:
        distribution: ``dirichlet`` or ``lognormal``.
        alpha: > 0, of the first; the smaller, the more unlike the sizes.
        sigma: >= 0, of the second; 0 makes all sizes alike.
        min_size: the least number of training examples of a client, >= 1.
        max_draws: how many draws to try, >= 1.
    """

    distribution: Literal["dirichlet", "lognormal"]
    alpha: float
    sigma: float
    min_size: int
    max_draws: int

    def __post_init__(self) -> None:
        check_draw_parameters(self.alpha, self.min_size, self.max_draws)
        require(0 <= self.sigma < np.inf, "sigma", "must be >= 0 (0: all sizes alike) and finite", self.sigma)
        known = self.distribution in ("dirichlet", "lognormal")
        require(known, "distribution", "must be one of dirichlet, lognormal", self.distribution)

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Labels [N] and [M] of the training and test examples, the number of clients K, and the randomness of the draws.

        Raises:
            ConfigError: when ``min_size`` cannot be reached, or was not within ``max_draws`` draws.
        """
        check_arguments(train_labels, test_labels, num_clients, self.min_size)

        def draw() -> np.ndarray:  # [1, K]
            shares = (
                rng.dirichlet([self.alpha] * num_clients)
                if self.distribution == "dirichlet"
                else np.exp(self.sigma * rng.standard_normal(num_clients))
            )
            return allocate(shares, len(train_labels), rng.random())[None]

        sizes, num_draws = draw_until_valid(draw, self.min_size, self.max_draws)
        if num_draws > 1:
            log.info("partition: the split of draw %d is the first with at least %d examples for every client", num_draws, self.min_size)
        pieces = np.split(rng.permutation(len(train_labels)), np.cumsum(sizes[0])[:-1])
        train = [np.sort(piece).astype(np.int64) for piece in pieces]
        return Partition(train, test_shards_of_own_classes(train, train_labels, test_labels), num_draws)
