"""A public set made of nothing: coloured noise."""

from dataclasses import dataclass

import numpy as np
import torch

from fedkd.check import require
from fedkd.seed import Seed
from fedkd.types import Examples, Task


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
        """The images; each is stretched over 0..scale."""
        channels, height, width = task.shape
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
        frequency[0, 0] = np.inf if self.exponent else 1.0  # the mean is no noise
        spectrum = np.fft.rfft2((seed / "noise").numpy().standard_normal((self.size, channels, height, width))) / frequency**self.exponent
        image = np.fft.irfft2(spectrum, s=(height, width))
        low, high = (bound(image, axis=(1, 2, 3), keepdims=True) for bound in (np.min, np.max))
        x = np.round((image - low) / (high - low) * held.scale).astype(np.uint8)
        y = torch.zeros(self.size, dtype=torch.int64)
        return Examples(torch.from_numpy(x), y, held.scale, held.mean, held.std).to(held.y.device)
