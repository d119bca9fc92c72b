"""Everyone alike: the training examples are shuffled and dealt out in equal numbers."""

from dataclasses import dataclass

import numpy as np

from fedkd.partition.common import check_arguments, test_shards_of_own_classes
from fedkd.types import Partition


@dataclass(frozen=True, kw_only=True)
class IID:
    """Each client gets N / K training examples, rounded up or down; all are given away. Test shards: ``shards.owned``."""

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Labels [N] and [M] of the training and test examples, the number of clients K, and the randomness of the shuffle."""
        check_arguments(train_labels, test_labels, num_clients)
        train = [np.sort(shard).astype(np.int64) for shard in np.array_split(rng.permutation(len(train_labels)), num_clients)]
        return Partition(train, test_shards_of_own_classes(train, train_labels, test_labels))
