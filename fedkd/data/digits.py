"""scikit-learn's handwritten digits: the data that need no file and no download."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits

from fedkd.data.cache import content_digest
from fedkd.types import Examples, Task


@dataclass(frozen=True, kw_only=True)
class Digits:
    """1,797 grey images of 8x8 pixels, values 0..16, 10 classes (``sklearn.datasets.load_digits``).

    Every fifth example of each class is a test example: 1,442 for training, 355 for testing.
    """

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """Task, training and test examples."""
        digits = load_digits()
        x, y = digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64)
        held_out = np.zeros(len(y), dtype=bool)
        for label in range(10):
            held_out[np.flatnonzero(y == label)[4::5]] = True
        digest = content_digest({"x": x, "y": y, "held_out": held_out})
        train, test = (
            Examples(torch.from_numpy(x[part]), torch.from_numpy(y[part]), 16.0, (0.0,), (1.0,), digest) for part in (~held_out, held_out)
        )
        return Task("digits", (1, 8, 8), 10, tuple(str(label) for label in range(10))), train, test
