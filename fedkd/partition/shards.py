"""Label skew: the examples are sorted by label and cut into shards of equal size, and every client gets a few shards."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedkd.errors import require
from fedkd.partition.common import check_arguments, check_count, indices_by_class, local_test_shards
from fedkd.types import Partition


@dataclass(frozen=True, kw_only=True)
class Shards:
    """K times ``per_client`` shards of equal size, rounded up or down, of which each client draws ``per_client``.

    McMahan, Moore, Ramage, Hampson and Aguera y Arcas, AISTATS 2017. With two shards a client has examples of two classes, or of one,
    three, or four where a shard crosses a boundary between classes. The examples of a class are shuffled first. Local test sets:
    :func:`fedkd.partition.common.local_test_shards`.

    Args:
        per_client: number of shards of a client, >= 1; the paper has 2.

    Raises:
        ConfigError: ``per_client`` is out of range.
    """

    by_label: ClassVar[bool] = True
    """Examples are divided by their classes."""

    per_client: int

    def __post_init__(self) -> None:
        check_count("per_client", self.per_client)

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide the examples.

        Args:
            train_labels: labels of the training examples [N].
            test_labels: labels of the test examples [M].
            num_clients: number of clients, K.
            rng: shuffles the examples and draws shards.

        Raises:
            ConfigError: there are fewer training examples than shards.
        """
        check_arguments(train_labels, test_labels, num_clients)
        num_shards = num_clients * self.per_client
        rule = f"* {num_clients} clients must be at most the number of training examples, {len(train_labels)}"
        require(num_shards <= len(train_labels), "per_client", rule, self.per_client)
        shards = np.array_split(np.concatenate([rng.permutation(indices) for indices in indices_by_class(train_labels)]), num_shards)
        drawn = rng.permutation(num_shards).reshape(num_clients, self.per_client)
        train = [np.sort(np.concatenate([shards[shard] for shard in row])).astype(np.int64) for row in drawn]
        return Partition(train, local_test_shards(train, train_labels, test_labels))
