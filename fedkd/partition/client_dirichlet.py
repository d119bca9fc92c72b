"""Label skew: each client draws its own class proportions ~ Dirichlet(alpha), and all clients have equally many examples."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedkd.errors import require
from fedkd.partition.common import check_arguments, indices_by_class, local_test_shards
from fedkd.types import Partition


@dataclass(frozen=True, kw_only=True)
class ClientDirichlet:
    """For each client, proportions over classes ~ Dirichlet(alpha, ..., alpha). Each of K clients gets floor(N / K) examples.

    One by one, a random client that is not full draws a class from its proportions, among the classes that are left, and gets an example of
    it. A client that is filled late so gets what is left, and its shares differ from its proportions. FedDyn, FedFTG and Co-Boosting use
    this split.

    Source:
        Hsu, Qi, Brown: Measuring the effects of non-identical data distribution for federated visual classification, 2019.
        Public code: alpemreacar/FedDyn @ 48a19fa.

    Deviations:
        - The public code draws again where the class is exhausted. The proportions of the classes that are left have the same law.
        - Examples of a class are given in random order, not from the last one on.

    Args:
        alpha: > 0; a smaller value gives each client fewer classes.

    Raises:
        ConfigError: the value is out of range.
    """

    by_label: ClassVar[bool] = True
    """Examples are divided by their classes."""

    alpha: float

    def __post_init__(self) -> None:
        require(0 < self.alpha < np.inf, "alpha", "must be > 0 (small: few classes per client; large: near to iid) and finite", self.alpha)

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide the examples.

        Args:
            train_labels: labels of the training examples [N].
            test_labels: labels of the test examples [M].
            num_clients: number of clients, K.
            rng: draws proportions, clients and classes, and shuffles the examples.

        Raises:
            ConfigError: there are more clients than examples.
        """
        check_arguments(train_labels, test_labels, num_clients)
        left = [list(rng.permutation(indices)) for indices in indices_by_class(train_labels)]
        proportions = rng.dirichlet([self.alpha] * len(left), num_clients)
        shards: list[list[int]] = [[] for _ in range(num_clients)]
        size = len(train_labels) // num_clients
        not_full, has_left = list(range(num_clients)), np.array([bool(indices) for indices in left])
        while not_full:
            place = int(rng.integers(len(not_full)))
            client = not_full[place]
            weights = np.where(has_left, proportions[client], 0.0)
            if not weights.sum() > 0:  # proportions that are 0 in floating point
                weights = has_left.astype(float)
            cumulative = np.cumsum(weights)
            label = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
            shards[client].append(left[label].pop())
            has_left[label] = bool(left[label])
            if len(shards[client]) == size:
                not_full.pop(place)
        train = [np.sort(np.array(shard, dtype=np.int64)) for shard in shards]
        return Partition(train, local_test_shards(train, train_labels, test_labels))
