"""What a server's generator has learnt, looked at while the run goes on: label fidelity, diversity, coverage, and where its latents lie.

Everything is computed from the state and the updates of a finished round, with draws of its own, so that no training knows of it.
"""

import numpy as np
from scipy.spatial.distance import cdist, pdist

NUM_NEIGHBORS = 5
"""k of the coverage, as in its paper."""


# ------------------------------------------------------------------------------------------------------------- measures
def label_accuracy(said: np.ndarray, overall: np.ndarray | None, y: np.ndarray, held: np.ndarray) -> dict[str, np.ndarray]:
    """The share of generated examples whose label is read back, by class: each [C], NaN where nobody can say.

    Args:
        said: logits of the clients [K, N, C].
        overall: logits of the global model [N, C], or None.
        y: the labels asked for [N].
        held: whether a client has training examples of a class [K, C].

    Returns:
        ``label_accuracy_ensemble`` (of the mean logits), ``label_accuracy_global_model``, ``label_accuracy_clients_with_class`` and ``label_accuracy_clients_without_class`` (means over the clients that
        hold the class, and over those that do not), ``num_clients_without_class`` clients, ``num_generated``.
    """
    label = y[:, None] == np.arange(held.shape[1])  # [N, C]
    number = label.sum(0)

    def share(logits: np.ndarray) -> np.ndarray:  # [..., N, C] -> [..., C]
        right = logits.argmax(-1) == y
        return np.where(number > 0, right.astype(float) @ label / np.maximum(number, 1), np.nan)

    each = share(said)  # [K, C]
    return {
        "num_generated": number,
        "label_accuracy_ensemble": share(said.mean(0)),
        "label_accuracy_global_model": np.full(len(number), np.nan) if overall is None else share(overall),
        "label_accuracy_clients_with_class": mean_where(each, held),
        "label_accuracy_clients_without_class": mean_where(each, ~held),
        "num_clients_without_class": (~held).sum(0),
    }


def mean_where(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:  # [K, C], [K, C] -> [C]
    """The mean over the chosen of each column; NaN where none is."""
    number = chosen.sum(0)
    return np.where(number > 0, np.where(chosen, values, 0).sum(0) / np.maximum(number, 1), np.nan)


def diversity_and_coverage(generated: tuple[np.ndarray, np.ndarray], real: tuple[np.ndarray, np.ndarray], classes: int) -> dict[str, np.ndarray]:
    """Diversity of generated and of real latents, and coverage, by class [C]; each argument is latents [N, D] with labels [N]."""
    pairs = [(generated[0][generated[1] == c], real[0][real[1] == c]) for c in range(classes)]
    return {
        "pairwise_distance_generated": np.array([diversity(made) for made, _ in pairs]),
        "pairwise_distance_real": np.array([diversity(given) for _, given in pairs]),
        "coverage": np.array([coverage(given, made) for made, given in pairs]),
    }


def diversity(z: np.ndarray) -> float:  # [N, D]
    """The mean Euclidean distance of two unlike points: 0 where all are the same; NaN for fewer than two."""
    return float(pdist(z).mean()) if len(z) > 1 else np.nan


def coverage(real: np.ndarray, generated: np.ndarray) -> float:  # [N, D], [M, D]
    """The share of real points with a generated one no farther than their k-th nearest real neighbour; NaN for fewer than k + 1 of these.

    Naeem, Oh, Uh, Choi, Yoo: Reliable fidelity and diversity metrics for generative models, ICML 2020. 0: no mode of the
    class is met, a generator that has collapsed onto few of them meets few; as many points of the same distribution give
    1 - 2^-k = 0.97 on average. Here k = 5.
    """
    if len(real) <= NUM_NEIGHBORS or not len(generated):
        return np.nan
    radius = np.sort(cdist(real, real), axis=1)[:, NUM_NEIGHBORS]  # the nearest is the point itself
    return float((cdist(real, generated).min(1) <= radius).mean())
