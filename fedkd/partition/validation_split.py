"""Examples that a client holds out: of each client the same share, whatever the partition."""

import numpy as np

from fedkd.seed import Seed


def split_validation(shards: list[np.ndarray], share: float, seed: Seed) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each client's indices without those held out, and those: ``share`` of them, rounded down, drawn at random; one always stays.

    Args:
        shards: indices of each client's examples, ascending.
        share: 0..1.
        seed: every client has a stream of its own.
    """
    stays, goes = [], []
    for client, index in enumerate(shards):
        number = min(int(share * len(index)), len(index) - 1)
        drawn = np.zeros(len(index), bool)
        drawn[(seed / client).numpy().permutation(len(index))[:number]] = True
        stays.append(index[~drawn])
        goes.append(index[drawn])
    return stays, goes
