"""Label skew: every client has examples of a fixed number of classes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedkd.errors import require
from fedkd.partition.common import allocate, assign_examples, check_arguments, check_count, indices_by_class, local_test_shards
from fedkd.types import Partition


@dataclass(frozen=True, kw_only=True)
class ClassesPerClient:
    """Each client has ``per_client`` classes, and each class is divided equally among its clients.

    The split is known as "#C = k" or "pathological" (Li, Diao, Chen and He, ICDE 2022). The clients choose their classes in random order.
    Each takes the classes that the fewest clients have so far, at random among equals. The numbers of clients of two classes therefore
    differ by at most one. If clients times ``per_client`` is less than the number of classes, some classes are not used. Local test sets:
    :func:`fedkd.partition.common.local_test_shards`.

    Args:
        per_client: number of classes of a client, >= 1, at most the number of classes.

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
            rng: draws classes and shuffles the examples.

        Raises:
            ConfigError: there are fewer classes than ``per_client``, or a class has fewer examples than clients.
        """
        check_arguments(train_labels, test_labels, num_clients)
        by_class = indices_by_class(train_labels)
        present = np.array([label for label, indices in enumerate(by_class) if len(indices)])
        rule = f"must be at most the number of classes there are examples of, {len(present)}"
        require(self.per_client <= len(present), "per_client", rule, self.per_client)
        has_class = np.zeros((len(by_class), num_clients))
        for client in rng.permutation(num_clients):
            shuffled = rng.permutation(present)
            rarest = np.argsort(has_class[shuffled].sum(1), kind="stable")[: self.per_client]
            has_class[shuffled[rarest], client] = 1
        sizes = np.zeros(has_class.shape, np.int64)
        for label in present[has_class[present].any(1)]:
            number, size = int(has_class[label].sum()), len(by_class[label])
            rule = f"must be small enough: {number} clients would share the {size} examples of class {label}; take fewer clients or classes"
            require(number <= size, "per_client", rule, self.per_client)
            sizes[label] = allocate(has_class[label], size, rng.random())
        train = assign_examples(by_class, sizes, rng)
        return Partition(train, local_test_shards(train, train_labels, test_labels))
