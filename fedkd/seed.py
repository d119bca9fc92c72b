"""Random streams that are identified by a path: ``seed / "round" / 3 / "client" / 7 / "order"``.

A random number depends on its path alone. Other draws, the number of workers, the order in which clients finish, and resuming a run do
not change it. This is the only module that uses a global random generator.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Seed:
    """One node in the tree of random streams.

    Args:
        root: seed of the run, any integer.
        path: names from the root to this node.
    """

    root: int
    path: tuple[str, ...] = ()

    def __truediv__(self, name: str | int) -> "Seed":
        """The child stream ``name``, independent of every other stream.

        Raises:
            ValueError: ``name`` contains a slash.
        """
        if "/" in str(name):
            raise ValueError(f"names in the path of a seed must not contain '/', got {name!r}")
        return Seed(self.root, (*self.path, str(name)))

    def integer(self) -> int:
        """The first 64 bits of the SHA-256 hash of this path."""
        return int.from_bytes(hashlib.sha256("/".join((str(self.root), *self.path)).encode()).digest()[:8], "big")

    def numpy(self) -> np.random.Generator:
        """A fresh NumPy generator at the start of this stream."""
        return np.random.default_rng(self.integer())

    def torch(self) -> torch.Generator:
        """A fresh torch generator at the start of this stream. It is on the CPU, so that numbers do not depend on the device."""
        return torch.Generator().manual_seed(self.integer() >> 1)

    @contextmanager
    def globally(self) -> Iterator[None]:
        """Seed the global generators of torch, NumPy, and Python inside the block, and restore them after it.

        For code that takes no generator: the initialization of ``nn.Module`` and Flower's own samplers.
        """
        python_state, numpy_state = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.integer() >> 1)
            np.random.seed(self.integer() % 2**32)
            random.seed(self.integer())
            try:
                yield
            finally:
                random.setstate(python_state)
                np.random.set_state(numpy_state)
