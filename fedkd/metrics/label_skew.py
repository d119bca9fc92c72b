"""How unlike clients are, in two numbers and the sizes."""

import numpy as np

from fedkd.errors import require


def label_distance(counts: np.ndarray) -> float:  # [K, C]
    """The mean, over all pairs of clients, of the total variation distance ``1/2 sum_c |p_c - q_c|`` of their label distributions.

    0: all alike; 1: no class is held by two clients; 0 for a single client. Clients without examples are left out.

    Args:
        counts: examples by client and class, >= 0.
    """
    shares = np.sort(label_distributions(counts), axis=0)  # class by class: a sum over pairs is one over ranks
    number = len(shares)
    weights = 2 * np.arange(number) - (number - 1)
    pairs = max(number * (number - 1) / 2, 1)
    return float((weights[:, None] * shares).sum() / 2 / pairs)


def effective_classes(counts: np.ndarray) -> float:  # [K, C]
    """The mean over clients of the exponential of the entropy of their labels: k for a client of k classes in equal numbers.

    Args:
        counts: examples by client and class, >= 0; clients without examples are left out.
    """
    shares = label_distributions(counts)
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    return float(np.exp(-(shares * logs).sum(axis=1)).mean())


def label_distributions(counts: np.ndarray) -> np.ndarray:  # [K, C] -> [K', C]
    """The label distribution of every client that has examples.

    Raises:
        ConfigError: nobody has any.
    """
    counts = np.asarray(counts, dtype=np.float64)
    require(counts.ndim == 2 and bool((counts >= 0).all()) and counts.sum() > 0, "counts", "must be [K, C], >= 0, not all 0", counts.shape)
    sizes = counts.sum(axis=1, keepdims=True)
    return counts[sizes[:, 0] > 0] / sizes[sizes > 0][:, None]


def describe_skew(counts: np.ndarray) -> str:  # [K, C]
    """``label distance 0.71, 2.3 effective classes, 12 to 310 examples``."""
    sizes = np.asarray(counts).sum(axis=1)
    extent = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    return f"label distance {label_distance(counts):.2f}, {effective_classes(counts):.1f} effective classes, {extent} examples"
