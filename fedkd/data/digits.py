"""scikit-learn's handwritten digits. They need neither a file nor a download."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from fedkd.data.cache import content_digest
from fedkd.types import Examples, Task


@cache
def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """The images [1797, 8, 8] and their labels [1797], read once in a process.

    The file of scikit-learn is read without importing scikit-learn, which takes a second in every worker.
    """
    spec = find_spec("sklearn")
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [file for folder in folders if (file := Path(folder, "datasets", "data", "digits.csv.gz")).is_file()]
    if files:
        table = np.loadtxt(files[0], delimiter=",")
    else:  # another version of scikit-learn keeps it elsewhere
        from sklearn.datasets import load_digits

        table = np.column_stack(load_digits(return_X_y=True))
    return table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Digits:
    """1,797 gray images of 8x8 pixels with values 0..16 and 10 classes (``sklearn.datasets.load_digits``).

    Every fifth example of each class is a test example: 1,442 training and 355 test images.
    """

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """The task, the training examples, and the test examples."""
        images, y = read_digits()
        x = images[:, None]
        held_out = np.zeros(len(y), dtype=bool)
        for label in range(10):
            held_out[np.flatnonzero(y == label)[4::5]] = True
        digest = content_digest({"x": x, "y": y, "held_out": held_out})
        train, test = (
            Examples(torch.from_numpy(x[part]), torch.from_numpy(y[part]), 16.0, (0.0,), (1.0,), digest) for part in (~held_out, held_out)
        )
        return Task("digits", (1, 8, 8), 10, tuple(str(label) for label in range(10))), train, test
