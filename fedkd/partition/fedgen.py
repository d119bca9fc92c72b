"""The partition of FedGen (Zhu, Hong and Zhou, ICML 2021, and its public code)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedkd.errors import require
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
class FedGen:
    """Label skew by Dirichlet proportions, on a part of the data, with a cap on the number of examples of a client.

    With N training examples and K clients, cap = ratio * N / K. Of each class, min(cap, ratio * its size) examples are used; all of them if
    ratio is 1. MNIST with ratio 0.5 and 20 clients has 1,500 examples per class, a quarter of the data. Class by class, in random order,
    proportions ~ Dirichlet(alpha) are drawn, set to zero for clients that already have cap examples, and divided by their sum. Everything
    is drawn again until every client has ``min_size`` examples. A client's local test set has floor(n / K) of the n test examples of each
    class of its training examples, consecutive and disjoint; none if n < K.

    As in the public code, rounding leaves an example of most classes to the last client, which therefore has more labels than the others.
    Deviation: it gets no example of a class where its proportion is 0. The random numbers are not those of the public code; the partition
    ``from_file`` reads its files.

    Args:
        alpha: > 0; a smaller value gives each client fewer classes.
        ratio: part of the data that is used, in (0, 1]; the paper has 0.5 for MNIST and 0.1 for EMNIST letters.
        min_size: minimum number of training examples of a client, >= 1; the public code has 10 (MNIST) and 260 (EMNIST letters).
        max_draws: maximum number of draws, >= 1.

    Raises:
        ConfigError: a value is out of range; on calling if ``min_size`` is not reached.
    """

    by_label: ClassVar[bool] = True
    """Examples are divided by their classes."""

    alpha: float
    ratio: float
    min_size: int
    max_draws: int

    def __post_init__(self) -> None:
        check_draw_parameters(self.alpha, self.min_size, self.max_draws)
        require(0 < self.ratio <= 1, "ratio", "must be in (0, 1] (1 uses all examples)", self.ratio)

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
        cap = self.ratio * len(train_labels) / num_clients
        by_class = indices_by_class(train_labels)
        num_used = [len(indices) if self.ratio == 1 else int(min(cap, int(self.ratio * len(indices)))) for indices in by_class]
        rule = f"* {num_clients} clients must be at most the {sum(num_used)} examples that ratio={self.ratio} keeps; take a larger ratio"
        require(self.min_size * num_clients <= sum(num_used), "min_size", rule, self.min_size)
        order = rng.permutation(len(by_class))
        sizes, num_draws = draw_until_valid(lambda: self._draw(num_used, order, cap, num_clients, rng), self.min_size, self.max_draws)
        if num_draws > 1:
            log.info("partition: the split of draw %d is the first with at least %d examples for every client", num_draws, self.min_size)
        train = assign_examples(by_class, sizes, rng)
        return Partition(train, local_test_shards(train, train_labels, test_labels, at_least=0), num_draws)

    def _draw(
        self, num_used: Sequence[int], order: np.ndarray, cap: float, num_clients: int, rng: np.random.Generator
    ) -> np.ndarray | None:  # [C, K]
        """One draw of the number of examples of each class for each client; None if all clients below the cap have proportion 0."""
        sizes = np.zeros((len(num_used), num_clients), np.int64)
        for label in order:
            proportions = rng.dirichlet([self.alpha] * num_clients) * (sizes.sum(axis=0) < cap)
            if not proportions.sum() > 0:
                return None
            sizes[label] = allocate(proportions, num_used[label], offset=0)
        return sizes
