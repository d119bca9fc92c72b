"""Label skew: how different the label distributions of clients are. This module needs no torch."""

import numpy as np

from fedkd.errors import require


def label_distance(counts: np.ndarray) -> float:  # [K, C]
    """The mean total variation distance ``1/2 sum_c |p_c - q_c|`` of the label distributions of two clients, over all pairs.

    It is 0 if all distributions are equal, 1 if no two clients share a class, and 0 for a single client.

    Args:
        counts: number of examples by client and class, >= 0. Clients without examples are ignored.

    Raises:
        ConfigError: there are no examples.
    """
    sorted_shares = np.sort(label_distributions(counts), axis=0)  # sorted by class, a sum over pairs is a weighted sum over ranks
    number = len(sorted_shares)
    weights = 2 * np.arange(number) - (number - 1)
    num_pairs = max(number * (number - 1) / 2, 1)
    return float((weights[:, None] * sorted_shares).sum() / 2 / num_pairs)


def effective_classes(counts: np.ndarray) -> float:  # [K, C]
    """The mean over clients of exp(entropy of the labels). It is k for a client with k classes of equal size.

    Args:
        counts: number of examples by client and class, >= 0. Clients without examples are ignored.

    Raises:
        ConfigError: there are no examples.
    """
    shares = label_distributions(counts)
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    return float(np.exp(-(shares * logs).sum(axis=1)).mean())


def label_distributions(counts: np.ndarray) -> np.ndarray:  # [K, C] -> [K', C]
    """The label distribution of every client that has examples. Each row has sum 1.

    Raises:
        ConfigError: there are no examples.
    """
    counts = np.asarray(counts, dtype=np.float64)
    require(counts.ndim == 2 and bool((counts >= 0).all()) and counts.sum() > 0, "counts", "must be [K, C], >= 0, not all 0", counts.shape)
    sizes = counts.sum(axis=1, keepdims=True)
    return counts[sizes[:, 0] > 0] / sizes[sizes > 0][:, None]


def describe_skew(counts: np.ndarray) -> str:  # [K, C]
    """One line, such as ``label distance 0.71, 2.3 effective classes, 12 to 310 examples``."""
    sizes = np.asarray(counts).sum(axis=1)
    extent = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    return f"label distance {label_distance(counts):.2f}, {effective_classes(counts):.1f} effective classes, {extent} examples"
