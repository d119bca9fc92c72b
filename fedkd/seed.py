"""Randomness is a path: ``seed / "round" / 3 / "client" / 7 / "order"``.

A draw depends on its path alone: not on what else was drawn, on the number of workers, on the order of arrival, or on
whether the run was resumed. This is the only file that touches a global random generator.
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
    """A node in the tree of random streams.

    Args:
        root: the run's seed, any integer.
        path: the names walked from the root.
    """

    root: int
    path: tuple[str, ...] = ()

    def __truediv__(self, name: str | int) -> "Seed":
        """The child stream called ``name``, independent of every other."""
        if "/" in str(name):
            raise ValueError(f"a name in a seed's path must not contain '/', got {name!r}")
        return Seed(self.root, (*self.path, str(name)))

    def integer(self) -> int:
        """64 bits that stand for this path: the head of SHA-256 over it."""
        return int.from_bytes(hashlib.sha256("/".join((str(self.root), *self.path)).encode()).digest()[:8], "big")

    def numpy(self) -> np.random.Generator:
        """A fresh NumPy generator at the start of this stream."""
        return np.random.default_rng(self.integer())

    def torch(self) -> torch.Generator:
        """A fresh torch generator (on the CPU, so that numbers do not depend on the device) at the start of this stream."""
        return torch.Generator().manual_seed(self.integer() >> 1)

    @contextmanager
    def globally(self) -> Iterator[None]:
        """Seed the global generators of torch, NumPy and Python inside the block, and put them back after it.

        For code that takes no generator: the initialisation of ``nn.Module`` and Flower's own samplers.
        """
        python, numpy = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.integer() >> 1)
            np.random.seed(self.integer() % 2**32)
            random.seed(self.integer())
            try:
                yield
            finally:
                random.setstate(python)
                np.random.set_state(numpy)
