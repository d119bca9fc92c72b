"""Quantity skew on top of another partition: each client keeps a random part of its examples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedkd.errors import require
from fedkd.partition.common import DerivedPartition, check_arguments, check_count, divide_by_base
from fedkd.types import ExampleAttributes, Partition


@dataclass(frozen=True, kw_only=True)
class Subsample(DerivedPartition):
    """Each client keeps a random fraction of its examples under the partition ``base``; the others are not used.

    Label skew and quantity skew can so be combined. The fractions are proportional to exp(sigma * normal), or ~ Dirichlet(alpha, ...,
    alpha), divided by the largest fraction of all clients. They do not depend on labels. The kept examples are drawn uniformly, and their
    number is rounded at random. A client's local test set is that of ``base`` without the classes of which it has kept no training
    example.

    Args:
        base: the partition to begin with.
        distribution: ``lognormal`` or ``dirichlet``.
        sigma: parameter of ``lognormal``, >= 0; 0 keeps all examples.
        alpha: parameter of ``dirichlet``, > 0; a smaller value gives more different sizes.
        min_size: minimum number of examples that a client keeps, >= 1; every client must have as many under ``base``.

    Raises:
        ConfigError: a value is out of range.
    """

    distribution: Literal["lognormal", "dirichlet"]
    sigma: float
    alpha: float
    min_size: int

    def __post_init__(self) -> None:
        known = self.distribution in ("lognormal", "dirichlet")
        require(known, "distribution", "must be one of lognormal, dirichlet", self.distribution)
        require(0 <= self.sigma < np.inf, "sigma", "must be >= 0 (0 keeps all examples) and finite", self.sigma)
        require(0 < self.alpha < np.inf, "alpha", "must be > 0 (small: very different sizes) and finite", self.alpha)
        check_count("min_size", self.min_size)

    def divide_examples(self, train: ExampleAttributes, test: ExampleAttributes, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide the examples.

        Args:
            train: the training examples.
            test: the test examples.
            num_clients: number of clients, K.
            rng: draws the partition ``base``, fractions, and examples.

        Raises:
            ConfigError: ``base`` raises one, or gives a client fewer than ``min_size`` examples.
        """
        check_arguments(train.y, test.y, num_clients, self.min_size)
        whole = divide_by_base(self.base, train, test, num_clients, rng)
        fewest = min(map(len, whole.train))
        rule = f"must be at most the size of the smallest client of base, {fewest}"
        require(self.min_size <= fewest, "min_size", rule, self.min_size)
        kept = [self._keep(index, fraction, rng) for index, fraction in zip(whole.train, self._fractions(num_clients, rng))]
        return replace(whole, train=kept, test=_without_lost_classes(whole, kept, train.y, test.y))

    def _fractions(self, num_clients: int, rng: np.random.Generator) -> np.ndarray:  # [K]
        """The fraction of its examples that each client keeps; the largest is 1."""
        if self.distribution == "dirichlet":
            proportions = rng.dirichlet([self.alpha] * num_clients)
            return np.asarray(proportions / proportions.max())
        exponents = self.sigma * rng.standard_normal(num_clients)
        return np.asarray(np.exp(exponents - exponents.max()))

    def _keep(self, index: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
        """A random ``fraction`` of ``index``, at least ``min_size``, ascending."""
        number = max(self.min_size, int(fraction * len(index) + rng.random()))
        return np.sort(rng.permutation(index)[:number])


def _without_lost_classes(
    whole: Partition, train: Sequence[np.ndarray], train_labels: np.ndarray, test_labels: np.ndarray
) -> list[np.ndarray]:
    """The local test sets of ``whole`` without the classes of which a client had training examples and kept none."""
    lost = [np.setdiff1d(train_labels[before], train_labels[after]) for before, after in zip(whole.train, train)]
    return [index[~np.isin(test_labels[index], classes)] for index, classes in zip(whole.test, lost)]
