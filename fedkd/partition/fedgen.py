"""FedGen's own split (Zhu, Hong and Zhou, ICML 2021, and its public code)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.errors import require
from fedkd.partition.common import check_arguments, check_draw_parameters, allocate, assign_examples, test_shards_of_own_classes, indices_by_class, draw_until_valid
from fedkd.types import Partition

log = logging.getLogger("fedkd")


@dataclass(frozen=True, kw_only=True)
class FedGen:
    """Part of the data, Dirichlet proportions, and a cap on what a client may hold before it gets more.

    With N training examples and K clients, cap = ratio * N / K. Of each class, min(cap, ratio * its size) examples are kept (all, if
    ratio is 1): for MNIST, ratio 0.5 and 20 clients 1,500 a class, hence a quarter of the data. Class by class, in random order,
    proportions ~ Dirichlet(alpha) are drawn, set to zero for clients that hold cap examples already, and divided by their sum.
    All is drawn again until every client holds ``min_size``. A client's test shard holds floor(n / K) of the n test examples of
    each class that it owns, consecutive, disjoint between clients; none if n < K.

    As in the public code, rounding leaves an example of most classes to the last client, which hence owns more labels than others;
    unlike there, it gets none if its proportion is 0. The random numbers are not the public code's: ``file`` reads its splits.

    Args:
        alpha: > 0; the smaller, the fewer classes a client holds.
        ratio: the part of the data to use, in (0, 1]; the paper has 0.5 for MNIST and 0.1 for EMNIST letters.
        min_size: the least number of training examples of a client, >= 1; the public code has 10 (MNIST) and 260 (EMNIST letters).
        max_draws: how many draws to try, >= 1.
    """

    alpha: float
    ratio: float
    min_size: int
    max_draws: int

    def __post_init__(self) -> None:
        check_draw_parameters(self.alpha, self.min_size, self.max_draws)
        require(0 < self.ratio <= 1, "ratio", "must be in (0, 1] (1 uses all examples)", self.ratio)

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Labels [N] and [M] of the training and test examples, the number of clients K, and the randomness of the draws.

        Raises:
            ConfigError: when ``min_size`` cannot be reached, or was not within ``max_draws`` draws.
        """
        check_arguments(train_labels, test_labels, num_clients, self.min_size)
        cap = self.ratio * len(train_labels) / num_clients
        classes = indices_by_class(train_labels)
        kept = [len(pool) if self.ratio == 1 else int(min(cap, int(self.ratio * len(pool)))) for pool in classes]
        enough = f"* {num_clients} clients must be at most the {sum(kept)} examples that ratio={self.ratio} keeps; take a larger ratio"
        require(self.min_size * num_clients <= sum(kept), "min_size", enough, self.min_size)
        order = rng.permutation(len(classes))
        sizes, num_draws = draw_until_valid(lambda: self._draw(kept, order, cap, num_clients, rng), self.min_size, self.max_draws)
        if num_draws > 1:
            log.info("partition: the split of draw %d is the first with at least %d examples for every client", num_draws, self.min_size)
        train = assign_examples(classes, sizes, rng)
        return Partition(train, test_shards_of_own_classes(train, train_labels, test_labels, at_least=0), num_draws)

    def _draw(
        self, kept: Sequence[int], order: np.ndarray, cap: float, num_clients: int, rng: np.random.Generator
    ) -> np.ndarray | None:  # [C, K]
        """One draw of how many examples of each class each client gets; None when those below the cap have proportion 0."""
        sizes = np.zeros((len(kept), num_clients), np.int64)
        for label in order:
            proportions = rng.dirichlet([self.alpha] * num_clients) * (sizes.sum(axis=0) < cap)
            if not proportions.sum() > 0:
                return None
            sizes[label] = allocate(proportions, kept[label], offset=0)
        return sizes
