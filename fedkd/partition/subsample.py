"""Uneven sizes on top of any other split: each client keeps a part of what that split gives it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedkd.errors import ConfigError, require
from fedkd.partition.common import check_arguments, check_count
from fedkd.types import Partition


@dataclass(frozen=True, kw_only=True)
class Subsample:
    """Of its examples under ``base``, each client keeps a share, drawn and divided by the largest share of all clients; the rest is no one's.

    So label skew and quantity skew compose. Shares are exp(sigma * normal) or ~ Dirichlet(alpha, ..., alpha), and do not look at labels;
    which examples a client keeps is drawn uniformly. Fractions are rounded at random. A client's test shard is ``base``'s, less
    the classes of which it has kept no training example.

    Args:
        base: the split to begin from.
        distribution: ``lognormal`` or ``dirichlet``.
        sigma: >= 0, of the first; 0 keeps everything.
        alpha: > 0, of the second; the smaller, the more unlike the sizes.
        min_size: the least number of examples that a client keeps, >= 1; ``base`` must leave everyone as many.
    """

    base: Callable[[np.ndarray, np.ndarray, int, np.random.Generator], Partition]
    distribution: Literal["lognormal", "dirichlet"]
    sigma: float
    alpha: float
    min_size: int

    def __post_init__(self) -> None:
        known = self.distribution in ("lognormal", "dirichlet")
        require(known, "distribution", "must be one of lognormal, dirichlet", self.distribution)
        require(0 <= self.sigma < np.inf, "sigma", "must be >= 0 (0 keeps everything) and finite", self.sigma)
        require(0 < self.alpha < np.inf, "alpha", "must be > 0 (small: unlike sizes) and finite", self.alpha)
        check_count("min_size", self.min_size)

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Labels [N] and [M] of the training and test examples, the number of clients K, and the randomness of the draws.

        Raises:
            ConfigError: ``base`` refuses, or leaves a client fewer than ``min_size`` examples.
        """
        check_arguments(train_labels, test_labels, num_clients, self.min_size)
        try:
            whole = self.base(train_labels, test_labels, num_clients, rng)
        except ValueError as error:
            raise ConfigError(f"base.{error}") from error
        fewest = min(map(len, whole.train))
        rule = f"must be at most what base leaves the client with the fewest examples, {fewest}"
        require(self.min_size <= fewest, "min_size", rule, self.min_size)
        train = [self._keep(index, share, rng) for index, share in zip(whole.train, self._shares(num_clients, rng))]
        return replace(whole, train=train, test=_still_owned(whole, train, train_labels, test_labels))

    def _shares(self, num_clients: int, rng: np.random.Generator) -> np.ndarray:  # [K]
        """What part each client keeps; 1 for one of them."""
        if self.distribution == "dirichlet":
            shares = rng.dirichlet([self.alpha] * num_clients)
            return shares / shares.max()
        exponents = self.sigma * rng.standard_normal(num_clients)
        return np.exp(exponents - exponents.max())

    def _keep(self, index: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
        """``share`` of ``index``, ascending, ``min_size`` at least."""
        number = max(self.min_size, int(share * len(index) + rng.random()))
        return np.sort(rng.permutation(index)[:number])


def _still_owned(whole: Partition, train: Sequence[np.ndarray], train_labels: np.ndarray, test_labels: np.ndarray) -> list[np.ndarray]:
    """``whole``'s test shards without the classes of which a client had training examples and kept none."""
    lost = [np.setdiff1d(train_labels[before], train_labels[after]) for before, after in zip(whole.train, train)]
    return [index[~np.isin(test_labels[index], classes)] for index, classes in zip(whole.test, lost)]
