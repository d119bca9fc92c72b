"""Identically distributed clients: the training examples are shuffled and divided equally."""

from dataclasses import dataclass

import numpy as np

from fedkd.partition.common import check_arguments, local_test_shards
from fedkd.types import Partition


@dataclass(frozen=True, kw_only=True)
class IID:
    """Each client gets N / K training examples, rounded up or down. All examples are used.

    Local test sets: :func:`fedkd.partition.common.local_test_shards`.
    """

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide the examples.

        Args:
            train_labels: labels of the training examples [N].
            test_labels: labels of the test examples [M].
            num_clients: number of clients, K.
            rng: shuffles the examples.

        Raises:
            ConfigError: there are fewer training examples than clients.
        """
        check_arguments(train_labels, test_labels, num_clients)
        train = [np.sort(shard).astype(np.int64) for shard in np.array_split(rng.permutation(len(train_labels)), num_clients)]
        return Partition(train, local_test_shards(train, train_labels, test_labels))
