"""Missing labels under another partition: clients have not labeled a part of their training examples, and do not train on it."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedkd.errors import require
from fedkd.partition.common import DerivedPartition, check_arguments, divide_by_base
from fedkd.types import ExampleAttributes, Partition


@dataclass(frozen=True, kw_only=True)
class MissingLabels(DerivedPartition):
    """Each client lacks the labels of a part of its training examples under the partition ``base``. It does not train on these examples.

    The examples without labels are not used in any other way: they count neither as training examples nor in the weights of clients. A
    client's local test set stays that of ``base``, so a client is also tested on classes of which it has images without labels. At least
    one labeled example, or one labeled class, stays with each client.

    Args:
        base: the partition to begin with.
        share: fraction of each client's labels, or of its classes, that is missing, 0..1; rounded at random.
        by: ``examples``: labels of random examples are missing. ``classes``: all labels of random classes of the client are missing.

    Raises:
        ConfigError: a value is out of range.
    """

    share: float
    by: Literal["examples", "classes"]

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, "share", "must be in 0..1 (0: no label is missing)", self.share)
        require(self.by in ("examples", "classes"), "by", "must be one of examples, classes", self.by)

    def divide_examples(self, train: ExampleAttributes, test: ExampleAttributes, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide the examples.

        Args:
            train: the training examples.
            test: the test examples.
            num_clients: number of clients, K.
            rng: draws the partition ``base``, and the labels or classes that are missing.

        Raises:
            ConfigError: ``base`` raises one.
        """
        check_arguments(train.y, test.y, num_clients)
        whole = divide_by_base(self.base, train, test, num_clients, rng)
        return replace(whole, train=[self._labeled(index, train.y[index], rng) for index in whole.train])

    def _labeled(self, index: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The examples of one client that have labels, ascending."""
        if self.by == "examples":
            return np.sort(index[self._kept(len(index), rng)])
        classes = np.unique(labels)
        return index[np.isin(labels, classes[self._kept(len(classes), rng)])]

    def _kept(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Which of so many things keep their labels, in random order."""
        missing = min(int(self.share * number + rng.random()), max(number - 1, 0))
        return rng.permutation(number)[missing:]
