"""A public set made of nothing: coloured noise."""

from dataclasses import dataclass

import numpy as np
import torch

from fedkd.check import require
from fedkd.seed import Seed
from fedkd.types import Examples, Task

BLOCK = 256
"""Images that are made at once."""


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Images of Gaussian noise whose amplitude falls with spatial frequency f as ``1 / f^exponent``, stretched to the full scale of pixels.

    Natural images fall off with an exponent near one. They need no data at all, and show what a method makes of images that
    are of no class. Images that a generator has learnt to make from the clients' models are the methods' own (DENSE, FedFTG).

    Args:
        size: > 0, how many images.
        exponent: >= 0; 0 is white noise.
    """

    size: int
    exponent: float

    held_out = 0.0

    def __post_init__(self) -> None:
        require(self.size > 0, "size", "must be > 0", self.size)
        require(self.exponent >= 0, "exponent", "must be >= 0 (0 is white noise)", self.exponent)

    def __call__(self, task: Task, withheld: Examples, held: Examples, seed: Seed) -> Examples:
        """The images; each is stretched over all bytes from black to full brightness."""
        rng, brightest = (seed / "noise").numpy(), task.brightest * held.scale
        sizes = [min(BLOCK, self.size - begin) for begin in range(0, self.size, BLOCK)]  # as doubles they would not all fit into memory
        x = np.concatenate([np.round(brightest * self.noise((size, *task.shape), rng)).astype(np.uint8) for size in sizes])
        y = torch.zeros(self.size, dtype=torch.int64)
        return Examples(torch.from_numpy(x), y, held.scale, held.mean, held.std).to(held.y.device)

    def noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Images [N, channels, height, width], each from 0 to 1."""
        frequency = np.hypot(np.fft.fftfreq(shape[-2])[:, None], np.fft.rfftfreq(shape[-1])[None])
        frequency[0, 0] = np.inf if self.exponent else 1.0  # the mean is no noise
        image = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) / frequency**self.exponent, s=shape[-2:])
        low, high = (bound(image, axis=(1, 2, 3), keepdims=True) for bound in (np.min, np.max))
        return (image - low) / (high - low)
