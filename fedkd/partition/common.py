"""How partitions are called, and steps that they share: checks, sizes, shards, local test sets, label counts, and writing a file."""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from fedkd.errors import ConfigError, require
from fedkd.files import write_atomically
from fedkd.types import ExampleAttributes, Partition


class LabelPartition(Protocol):
    """A partition that sees labels."""

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide examples with these labels."""


class AttributePartition(Protocol):
    """A partition that sees labels, groups and metadata."""

    def divide_examples(self, train: ExampleAttributes, test: ExampleAttributes, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide examples with these attributes."""


def divide(
    partition: LabelPartition | AttributePartition,
    train: ExampleAttributes,
    test: ExampleAttributes,
    num_clients: int,
    rng: np.random.Generator,
) -> Partition:
    """Divide examples by a partition of either kind.

    Args:
        partition: the partition. Its method ``divide_examples`` is called if it has one, and it is itself called with labels otherwise.
        train: the training examples.
        test: the test examples.
        num_clients: number of clients, K.
        rng: all randomness of the partition.

    Raises:
        ConfigError: the examples cannot be divided in this way.
    """
    if (by_attributes := getattr(partition, "divide_examples", None)) is not None:
        return by_attributes(train, test, num_clients, rng)
    return cast(LabelPartition, partition)(train.y, test.y, num_clients, rng)


def divide_by_base(
    base: LabelPartition | AttributePartition, train: ExampleAttributes, test: ExampleAttributes, num_clients: int, rng: np.random.Generator
) -> Partition:
    """Divide examples by the partition ``base`` of another one, see :func:`divide`.

    Raises:
        ConfigError: the examples cannot be divided in this way; the message begins with ``base``.
    """
    try:
        return divide(base, train, test, num_clients, rng)
    except ValueError as error:
        raise ConfigError(f"base.{error}") from error


@dataclass(frozen=True, kw_only=True)
class DerivedPartition(ABC):
    """A partition that changes another one.

    Args:
        base: the other partition.
    """

    base: LabelPartition | AttributePartition

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide examples of which only labels are known, see :meth:`divide_examples`."""
        return self.divide_examples(ExampleAttributes(train_labels), ExampleAttributes(test_labels), num_clients, rng)

    @abstractmethod
    def divide_examples(self, train: ExampleAttributes, test: ExampleAttributes, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide the examples.

        Args:
            train: the training examples.
            test: the test examples.
            num_clients: number of clients, K.
            rng: draws what the partition and ``base`` draw.

        Raises:
            ConfigError: ``base`` raises one, or the examples cannot be divided in this way.
        """


# ------------------------------------------------------------------------------------------------------------------ checks
def check_arguments(train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, min_size: int = 1) -> None:
    """Check the arguments of a partition.

    Args:
        train_labels: labels of the training examples [N], integers >= 0.
        test_labels: labels of the test examples [M], integers >= 0.
        num_clients: number of clients, K.
        min_size: minimum number of training examples of a client.

    Raises:
        ConfigError: labels are not such integers, or there are not enough examples for ``num_clients`` clients of ``min_size`` each.
    """
    for name, labels in (("train_labels", train_labels), ("test_labels", test_labels)):
        valid = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and (len(labels) == 0 or labels.min() >= 0)
        require(valid, name, "must be a vector of integers >= 0", f"{labels.dtype}{list(labels.shape)}")
    whole = isinstance(num_clients, (int, np.integer)) and not isinstance(num_clients, bool)
    require(whole and num_clients >= 1, "num_clients", "must be a whole number >= 1", num_clients)
    num_examples = len(train_labels)
    require(num_clients <= num_examples, "num_clients", f"must be at most the number of training examples, {num_examples}", num_clients)
    if num_clients * min_size > num_examples:
        raise ConfigError(
            f"min_size must be at most {num_examples // num_clients}, as {num_examples} training examples are shared by {num_clients} "
            f"clients, got {min_size}; take fewer clients or a smaller min_size"
        )


def check_draw_parameters(alpha: float, min_size: int, max_draws: int) -> None:
    """Check the parameters of a partition that is drawn until every client has enough examples.

    Raises:
        ConfigError: not alpha > 0, min_size >= 1, and max_draws >= 1.
    """
    require(0 < alpha < np.inf, "alpha", "must be > 0 (small: few classes per client; large: near to iid) and finite", alpha)
    check_count("min_size", min_size)
    check_count("max_draws", max_draws)


def check_count(name: str, value: int) -> None:
    """Check that the parameter ``name`` is a whole number >= 1.

    Raises:
        ConfigError: it is not.
    """
    require(isinstance(value, int) and not isinstance(value, bool) and value >= 1, name, "must be a whole number >= 1", value)


# ------------------------------------------------------------------------------------------------- sizes and training shards
def indices_by_class(labels: np.ndarray) -> list[np.ndarray]:  # [N] -> C arrays
    """The indices of the examples of each class 0..C-1, ascending. The array of a class without examples is empty."""
    num_classes = int(labels.max()) + 1 if len(labels) else 0
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1]) if num_classes else []


def allocate(proportions: np.ndarray, num_examples: int, offset: float) -> np.ndarray:  # [K] -> [K], int64
    """The number of examples of each client, in proportion to ``proportions``. Their sum is ``num_examples``.

    The cumulative sums of the proportions plus ``offset`` are rounded down. They are divided by the last of them, so that rounding gives
    nothing to a client whose proportion is zero.

    Args:
        proportions: >= 0, not all 0; their sum need not be 1.
        num_examples: number of examples to allocate.
        offset: in [0, 1). If it is uniformly random, each client gets its proportion on average. At 0 the last client gets remainders.
    """
    total = np.cumsum(proportions)
    return np.diff(np.floor(total / total[-1] * num_examples + offset).astype(np.int64), prepend=0)


def draw_until_valid(draw: Callable[[], np.ndarray | None], min_size: int, max_draws: int) -> tuple[np.ndarray, int]:
    """Draw sizes [C, K] until every client has ``min_size`` examples.

    Args:
        draw: draws sizes once; None is a failed draw.
        min_size: minimum number of examples of a client.
        max_draws: maximum number of draws.

    Returns:
        The sizes, and the number of draws.

    Raises:
        ConfigError: ``max_draws`` draws were not enough.
    """
    best = 0
    for num_draws in range(1, max_draws + 1):
        sizes = draw()
        smallest = 0 if sizes is None else int(sizes.sum(axis=0).min())
        if sizes is not None and smallest >= min_size:
            return sizes, num_draws
        best = max(best, smallest)
    raise ConfigError(
        f"min_size must be reached by every client within max_draws={max_draws} draws, got {min_size}, where the best draw left a client "
        f"with {best}; take a larger alpha, fewer clients, a smaller min_size or a larger max_draws"
    )


def assign_examples(by_class: Sequence[np.ndarray], sizes: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffle the examples of each class, and assign ``sizes[c, k]`` of class c to client k. Remaining examples are not used.

    Args:
        by_class: indices of the examples of each class.
        sizes: [C, K].
        rng: shuffles the classes, in order.

    Returns:
        For each client the indices of its examples, ascending, int64.
    """
    shards: list[list[np.ndarray]] = [[] for _ in range(sizes.shape[1])]
    for indices, size in zip(by_class, sizes):
        for client, shard in enumerate(np.split(rng.permutation(indices), np.cumsum(size))[:-1]):
            shards[client].append(shard)
    return [np.sort(np.concatenate(shard)).astype(np.int64) for shard in shards]


# ---------------------------------------------------------------------------------------------------------- local test sets
def local_test_shards(
    train: Sequence[np.ndarray], train_labels: np.ndarray, test_labels: np.ndarray, at_least: int = 1
) -> list[np.ndarray]:
    """Local test sets: each client gets test examples of the classes of its training examples.

    Of each such class with n test examples, a client gets floor(n / K) consecutive ones, or ``at_least`` if that is more. The local test
    sets are disjoint. If the examples of a class are used up, later clients get none of it.

    Args:
        train: for each of the K clients the indices of its training examples.
        train_labels: labels of the training examples [N].
        test_labels: labels of the test examples [M].
        at_least: 1 uses also classes with fewer than K test examples; 0 is FedGen's own rule.

    Returns:
        For each client the indices of its test examples, ascending, int64.
    """
    shards: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in train]
    own_classes = [np.unique(train_labels[index]) for index in train]
    for label, indices in enumerate(indices_by_class(test_labels)):
        share, start = max(len(indices) // len(train), at_least), 0
        for client in range(len(train)):
            if label in own_classes[client]:
                shards[client].append(indices[start : start + share])
                start += share
    return [np.sort(np.concatenate(shard)).astype(np.int64) for shard in shards]


# ---------------------------------------------------------------------------------------------------------- counts and files
def label_counts(shards: Sequence[np.ndarray], labels: np.ndarray, num_classes: int) -> np.ndarray:  # [K, C], int64
    """The number of examples of each class that each client has.

    Args:
        shards: for each client the indices of its examples.
        labels: labels of all examples [N].
        num_classes: number of classes, C.
    """
    return np.stack([np.bincount(labels[index], minlength=num_classes) for index in shards]).astype(np.int64)


def write_partition(partition: Partition, path: str | Path, train_labels: np.ndarray, test_labels: np.ndarray, num_classes: int) -> None:
    """Write a partition as an npz file, atomically. Equal partitions give equal bytes.

    The file has the indices ``train_00``, ..., ``test_00``, ... of each client, and ``counts`` and ``test_counts`` [K, C], the numbers of
    examples per class. The partition ``from_file`` reads it.

    Args:
        partition: the partition.
        path: the file to write.
        train_labels: labels of the training examples [N].
        test_labels: labels of the test examples [M].
        num_classes: number of classes, C.

    Raises:
        OSError: the file cannot be written.
    """
    path, width = Path(path), max(2, len(str(len(partition.train) - 1)))
    arrays = {f"{part}_{k:0{width}d}": index for part in ("train", "test") for k, index in enumerate(getattr(partition, part))}
    arrays["counts"] = label_counts(partition.train, train_labels, num_classes)
    arrays["test_counts"] = label_counts(partition.test, test_labels, num_classes)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())
