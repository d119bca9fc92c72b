"""Global long tail under another partition: the classes of the whole federation are exponentially imbalanced."""

from dataclasses import dataclass, replace

import numpy as np

from fedkd.errors import require
from fedkd.partition.common import DerivedPartition, check_arguments, divide_by_base, indices_by_class
from fedkd.types import ExampleAttributes, Partition


@dataclass(frozen=True, kw_only=True)
class LongTail(DerivedPartition):
    """Class c of C keeps ``n_max factor^(-c / (C - 1))`` training examples, rounded down; the partition ``base`` divides these.

    n_max is the size of the largest class. The first class stays whole, and the last one has n_max / factor examples, at least one. A class
    that has fewer examples keeps them all. The kept examples are drawn uniformly. Test examples are not changed, so the global test set
    stays as balanced as it is.

    Source:
        Cui, Jia, Lin, Song, Belongie: Class-balanced loss based on effective number of samples, CVPR 2019 (CIFAR-10-LT).

    Args:
        base: the partition that divides the examples.
        factor: imbalance factor, >= 1; 1 keeps all examples. 10, 50 and 100 are usual.

    Raises:
        ConfigError: a value is out of range.
    """

    factor: float

    def __post_init__(self) -> None:
        require(1 <= self.factor < np.inf, "factor", "must be >= 1 (1 keeps all examples) and finite", self.factor)

    def divide_examples(self, train: ExampleAttributes, test: ExampleAttributes, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide the examples.

        Args:
            train: the training examples.
            test: the test examples.
            num_clients: number of clients, K.
            rng: draws the examples that are kept, and then the partition ``base``.

        Raises:
            ConfigError: ``base`` raises one.
        """
        check_arguments(train.y, test.y, num_clients)
        by_class = indices_by_class(train.y)
        sizes = self.sizes([len(indices) for indices in by_class])
        kept = [
            indices if size == len(indices) else np.sort(rng.permutation(indices)[:size]) for indices, size in zip(by_class, sizes.tolist())
        ]
        index = np.sort(np.concatenate(kept))
        groups = None if train.groups is None else train.groups[index]
        few = ExampleAttributes(train.y[index], groups, {name: values[index] for name, values in train.metadata.items()})
        whole = divide_by_base(self.base, few, test, num_clients, rng)
        return replace(whole, train=[index[own] for own in whole.train])

    def sizes(self, numbers: list[int]) -> np.ndarray:  # [C], int64
        """The number of examples that each class keeps, of ``numbers`` [C]."""
        ranks = np.arange(len(numbers)) / max(len(numbers) - 1, 1)
        wanted = np.floor(max(numbers) * self.factor**-ranks + 1e-9).astype(np.int64)
        return np.minimum(np.maximum(wanted, 1), numbers)
