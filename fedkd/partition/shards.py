"""Examples sorted by label, cut into equal pieces, a few pieces for each client."""

from dataclasses import dataclass

import numpy as np

from fedkd.errors import require
from fedkd.partition.common import check_arguments, check_count, test_shards_of_own_classes, indices_by_class
from fedkd.types import Partition


@dataclass(frozen=True, kw_only=True)
class Shards:
    """K times ``per_client`` shards of equal size, rounded up or down, ``per_client`` of them drawn for each client.

    McMahan, Moore, Ramage, Hampson, Aguera y Arcas, AISTATS 2017: with two shards a client has examples of two classes, of
    one or three or four where a shard lies across a boundary. Examples of a class are shuffled first. Test shards: ``shards.owned``.

    Args:
        per_client: shards of a client, >= 1; the paper has 2.
    """

    per_client: int

    def __post_init__(self) -> None:
        check_count("per_client", self.per_client)

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Labels [N] and [M] of the training and test examples, the number of clients K, and the randomness of the draws.

        Raises:
            ConfigError: there are fewer training examples than shards.
        """
        check_arguments(train_labels, test_labels, num_clients)
        number = num_clients * self.per_client
        rule = f"* {num_clients} clients must be at most the number of training examples, {len(train_labels)}"
        require(number <= len(train_labels), "per_client", rule, self.per_client)
        pieces = np.array_split(np.concatenate([rng.permutation(pool) for pool in indices_by_class(train_labels)]), number)
        hands = rng.permutation(number).reshape(num_clients, self.per_client)
        train = [np.sort(np.concatenate([pieces[piece] for piece in hand])).astype(np.int64) for hand in hands]
        return Partition(train, test_shards_of_own_classes(train, train_labels, test_labels))
