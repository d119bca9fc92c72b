"""What every partition does alike: checks, cutting classes into shards, test shards, counts, and the file that a run leaves."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fedkd.errors import ConfigError, require
from fedkd.types import Partition


def check_arguments(train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, min_size: int = 1) -> None:
    """Refuse what no split can give: ``num_clients`` clients of ``min_size`` examples each.

    Args:
        train_labels: labels of the training examples [N], integers >= 0.
        test_labels: labels of the test examples [M], integers >= 0.
        num_clients: how many clients, K.
        min_size: the least a client may hold.

    Raises:
        ConfigError: naming the parameter, when it cannot be.
    """
    for name, labels in (("train_labels", train_labels), ("test_labels", test_labels)):
        whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and (len(labels) == 0 or labels.min() >= 0)
        require(whole, name, "must be a vector of integers >= 0", f"{labels.dtype}{list(labels.shape)}")
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
    """The parameters of a split that is drawn until it obeys a rule: alpha > 0, min_size >= 1, max_draws >= 1."""
    require(0 < alpha < np.inf, "alpha", "must be > 0 (small: few classes a client; large: near to iid) and finite", alpha)
    check_count("min_size", min_size)
    check_count("max_draws", max_draws)


def check_count(name: str, value: int) -> None:
    """The parameter ``name`` counts something: a whole number >= 1."""
    require(isinstance(value, int) and not isinstance(value, bool) and value >= 1, name, "must be a whole number >= 1", value)


def indices_by_class(labels: np.ndarray) -> list[np.ndarray]:
    """The indices of each class 0..C-1, ascending; a class without examples has none."""
    num_classes = int(labels.max()) + 1 if len(labels) else 0
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1]) if num_classes else []


def allocate(proportions: np.ndarray, num_examples: int, offset: float) -> np.ndarray:  # [K]
    """How many of ``num_examples`` each client gets: the proportions are summed up, and the sums plus ``offset`` are rounded down.

    The sums are divided by the last of them, so that rounding leaves nothing to a client whose proportion is zero.

    Args:
        proportions: [K], >= 0, not all 0; need not sum to 1.
        num_examples: how many there are to give away; all are.
        offset: in [0, 1). Drawn uniformly, it gives each client its proportion on average; 0 leaves remainders to the last client.
    """
    total = np.cumsum(proportions)
    return np.diff(np.floor(total / total[-1] * num_examples + offset).astype(np.int64), prepend=0)


def draw_until_valid(draw: Callable[[], np.ndarray | None], min_size: int, max_draws: int) -> tuple[np.ndarray, int]:
    """Draw sizes [C, K] until every client holds ``min_size``.

    Args:
        draw: one draw; None is a draw that failed.
        min_size: the least a client may hold.
        max_draws: how often to try.

    Returns:
        The sizes, and how many draws it took.

    Raises:
        ConfigError: when ``max_draws`` draws were not enough.
    """
    best = 0
    for num_draws in range(1, max_draws + 1):
        sizes = draw()
        smallest = 0 if sizes is None else int(sizes.sum(axis=0).min())
        if smallest >= min_size:
            return sizes, num_draws
        best = max(best, smallest)
    raise ConfigError(
        f"min_size must be reached by every client within max_draws={max_draws} draws, got {min_size}, where the best draw left a client "
        f"with {best}; take a larger alpha, fewer clients, a smaller min_size or a larger max_draws"
    )


def assign_examples(pool_of: Sequence[np.ndarray], sizes: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffle every class and deal it out: client k gets ``sizes[c, k]`` examples of class c; what is left over is no one's.

    Args:
        pool_of: the indices of each class.
        sizes: [C, K].
        rng: shuffles the classes, in order.

    Returns:
        Each client's indices, ascending, int64.
    """
    shards: list[list[np.ndarray]] = [[] for _ in range(sizes.shape[1])]
    for pool, size in zip(pool_of, sizes):
        for k, shard in enumerate(np.split(rng.permutation(pool), np.cumsum(size))[:-1]):
            shards[k].append(shard)
    return [np.sort(np.concatenate(shard)).astype(np.int64) for shard in shards]


def test_shards_of_own_classes(
    train: Sequence[np.ndarray], train_labels: np.ndarray, test_labels: np.ndarray, at_least: int = 1
) -> list[np.ndarray]:
    """Test shards: each client's share of the classes that it holds in training.

    Of each class that it owns, a client gets floor(n / K) of the n test examples, or ``at_least`` if that is more, consecutively
    from the class's pool, clients in order. Shards are disjoint: where a pool is used up, later clients get none of it.

    Args:
        train: the clients' training indices, K of them.
        train_labels: [N].
        test_labels: [M].
        at_least: 1 keeps classes of fewer than K test examples in play; 0 is FedGen's own rule.
    """
    shards: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in train]
    owners = [np.unique(train_labels[index]) for index in train]
    for label, pool in enumerate(indices_by_class(test_labels)):
        share, start = max(len(pool) // len(train), at_least), 0
        for k in range(len(train)):
            if label in owners[k]:
                shards[k].append(pool[start : start + share])
                start += share
    return [np.sort(np.concatenate(shard)).astype(np.int64) for shard in shards]


def label_counts(shards: Sequence[np.ndarray], labels: np.ndarray, num_classes: int) -> np.ndarray:
    """How many examples of each class each client holds: [K, C], int64."""
    return np.stack([np.bincount(labels[index], minlength=num_classes) for index in shards]).astype(np.int64)


def write_partition(partition: Partition, path: str | Path, train_labels: np.ndarray, test_labels: np.ndarray, num_classes: int) -> None:
    """Write ``train_00``, ..., ``test_00``, ... and the label counts ``counts`` and ``test_counts`` [K, C] as an npz, atomically.

    The ``file`` partition reads it back; the same partition gives the same bytes.
    """
    path, width = Path(path), max(2, len(str(len(partition.train) - 1)))
    arrays = {f"{part}_{k:0{width}d}": index for part in ("train", "test") for k, index in enumerate(getattr(partition, part))}
    arrays["counts"] = label_counts(partition.train, train_labels, num_classes)
    arrays["test_counts"] = label_counts(partition.test, test_labels, num_classes)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
