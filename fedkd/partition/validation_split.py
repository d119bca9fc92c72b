"""Validation examples: every client holds out the same fraction of its training examples."""

import numpy as np

from fedkd.seed import Seed


def split_validation(shards: list[np.ndarray], fraction: float, seed: Seed) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Hold out a random fraction of each client's examples, rounded down. At least one example of a client is not held out.

    Args:
        shards: for each client the indices of its examples, ascending.
        fraction: 0..1.
        seed: random stream; each client has a stream of its own.

    Returns:
        For each client the indices for training, and the indices that are held out, both ascending.
    """
    kept, held_out = [], []
    for client, index in enumerate(shards):
        number = max(0, min(int(fraction * len(index)), len(index) - 1))
        is_held_out = np.zeros(len(index), bool)
        is_held_out[(seed / client).numpy().permutation(len(index))[:number]] = True
        kept.append(index[~is_held_out])
        held_out.append(index[is_held_out])
    return kept, held_out
