"""Quality of a server's generator: accuracy of its labels, diversity, and coverage of real embeddings."""

import numpy as np
from scipy.spatial.distance import cdist, pdist

NUM_NEIGHBORS = 5
"""k of the coverage, as in its paper."""


def label_accuracy(logits: np.ndarray, global_logits: np.ndarray | None, y: np.ndarray, has_class: np.ndarray) -> dict[str, np.ndarray]:
    """The fraction of generated examples that are classified as their label, by class.

    Args:
        logits: logits of the clients [K, N, C].
        global_logits: logits of the global model [N, C], or None.
        y: labels of the generated examples [N].
        has_class: whether a client has training examples of a class [K, C].

    Returns:
        Arrays [C], NaN where there is no value: ``label_accuracy_ensemble`` (mean logits of the clients), ``label_accuracy_global_model``,
        ``label_accuracy_clients_with_class`` and ``label_accuracy_clients_without_class`` (means over the clients that have the class, and
        that do not), ``num_clients_without_class``, and ``num_generated``.
    """
    is_label = y[:, None] == np.arange(has_class.shape[1])  # [N, C]
    number = is_label.sum(0)

    def accuracy(logits: np.ndarray) -> np.ndarray:  # [..., N, C] -> [..., C]
        correct = logits.argmax(-1) == y
        return np.where(number > 0, correct.astype(float) @ is_label / np.maximum(number, 1), np.nan)

    by_client = accuracy(logits)  # [K, C]
    return {
        "num_generated": number,
        "label_accuracy_ensemble": accuracy(logits.mean(0)),
        "label_accuracy_global_model": np.full(len(number), np.nan) if global_logits is None else accuracy(global_logits),
        "label_accuracy_clients_with_class": mean_where(by_client, has_class),
        "label_accuracy_clients_without_class": mean_where(by_client, ~has_class),
        "num_clients_without_class": (~has_class).sum(0),
    }


def mean_where(values: np.ndarray, mask: np.ndarray) -> np.ndarray:  # [K, C], [K, C] bool -> [C]
    """The mean of each column over the entries where ``mask`` is true; NaN where there is none."""
    number = mask.sum(0)
    return np.where(number > 0, np.where(mask, values, 0).sum(0) / np.maximum(number, 1), np.nan)


def diversity_and_coverage(
    generated: tuple[np.ndarray, np.ndarray], real: tuple[np.ndarray, np.ndarray], num_classes: int
) -> dict[str, np.ndarray]:
    """Diversity of generated and of real embeddings, and coverage, by class.

    Args:
        generated: embeddings [N, D] and labels [N].
        real: embeddings [M, D] and labels [M].
        num_classes: number of classes, C.

    Returns:
        Arrays [C]: ``pairwise_distance_generated``, ``pairwise_distance_real``, and ``coverage``.
    """
    by_class = [(generated[0][generated[1] == c], real[0][real[1] == c]) for c in range(num_classes)]
    return {
        "pairwise_distance_generated": np.array([diversity(generated_z) for generated_z, _ in by_class]),
        "pairwise_distance_real": np.array([diversity(real_z) for _, real_z in by_class]),
        "coverage": np.array([coverage(real_z, generated_z) for generated_z, real_z in by_class]),
    }


def diversity(z: np.ndarray) -> float:  # [N, D]
    """The mean Euclidean distance of two different points. It is 0 if all are equal, and NaN for fewer than two."""
    return float(pdist(z).mean()) if len(z) > 1 else np.nan


def coverage(real: np.ndarray, generated: np.ndarray) -> float:  # [N, D], [M, D]
    """The fraction of real points with a generated point within the distance of their k-th nearest real neighbor.

    Naeem, Oh, Uh, Choi and Yoo: Reliable fidelity and diversity metrics for generative models, ICML 2020, with k = 5. It is 0 if no mode of
    the class is covered, and small for a generator that has collapsed to a few modes. As many points of the same distribution give
    1 - 2^-k = 0.97 on average. It is NaN for fewer than k + 1 real points, or without generated points.
    """
    if len(real) <= NUM_NEIGHBORS or not len(generated):
        return np.nan
    radius = np.sort(cdist(real, real), axis=1)[:, NUM_NEIGHBORS]  # index 0 is the point itself
    return float((cdist(real, generated).min(1) <= radius).mean())
