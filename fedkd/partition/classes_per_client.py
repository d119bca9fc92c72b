"""Few classes: every client holds examples of exactly so many."""

from dataclasses import dataclass

import numpy as np

from fedkd.errors import require
from fedkd.partition.common import check_arguments, check_count, allocate, assign_examples, test_shards_of_own_classes, indices_by_class
from fedkd.types import Partition


@dataclass(frozen=True, kw_only=True)
class ClassesPerClient:
    """Each client holds ``per_client`` classes, each class is shared equally by those who hold it.

    Clients choose in random order, each the classes that fewest hold so far, at random among these: how many hold a class differs by
    one at most. Where clients times ``per_client`` is less than the number of classes, some classes are nobody's. Test shards:
    ``shards.owned``. Known as the "#C = k" or "pathological" split (Li, Diao, Chen, He, ICDE 2022).

    Args:
        per_client: how many classes a client holds, >= 1, at most as many as there are.
    """

    per_client: int

    def __post_init__(self) -> None:
        check_count("per_client", self.per_client)

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Labels [N] and [M] of the training and test examples, the number of clients K, and the randomness of the draws.

        Raises:
            ConfigError: there are fewer classes than ``per_client``, or a class has fewer examples than clients that hold it.
        """
        check_arguments(train_labels, test_labels, num_clients)
        classes = indices_by_class(train_labels)
        present = np.array([label for label, pool in enumerate(classes) if len(pool)])
        most = f"must be at most the number of classes there are examples of, {len(present)}"
        require(self.per_client <= len(present), "per_client", most, self.per_client)
        holders = np.zeros((len(classes), num_clients))
        for client in rng.permutation(num_clients):
            shuffled = rng.permutation(present)
            least = np.argsort(holders[shuffled].sum(1), kind="stable")[: self.per_client]
            holders[shuffled[least], client] = 1
        sizes = np.zeros(holders.shape, np.int64)
        for label in present[holders[present].any(1)]:
            number, pool = int(holders[label].sum()), len(classes[label])
            enough = (
                f"must be small enough: {number} clients would share the {pool} examples of class {label}; take fewer clients or classes"
            )
            require(number <= pool, "per_client", enough, self.per_client)
            sizes[label] = allocate(holders[label], pool, rng.random())
        train = assign_examples(classes, sizes, rng)
        return Partition(train, test_shards_of_own_classes(train, train_labels, test_labels))
