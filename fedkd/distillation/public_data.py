"""Public data for strategies that distill on the server: none, held out, the clients' images, another data set, or noise."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedkd.errors import ConfigError, require
from fedkd.seed import Seed
from fedkd.types import Examples, Task


@dataclass(frozen=True, kw_only=True)
class NoPublicData:
    """The server has no data: what most strategies of fedkd need."""

    held_out = 0.0

    def __call__(self, task: Task, withheld: Examples, held: Examples, seed: Seed) -> Examples | None:
        """None."""
        return None


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """``share`` of every client's training examples, without their labels; the clients train on the rest.

    Args:
        share: 0..1, both excluded.
    """

    share: float

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "share", "must be a share in 0..1, both excluded", self.share)

    @property
    def held_out(self) -> float:
        """What is taken from every client."""
        return self.share

    def __call__(self, task: Task, withheld: Examples, held: Examples, seed: Seed) -> Examples:
        """The withheld examples.

        Raises:
            ConfigError: there are none.
        """
        require(len(withheld) > 0, "share", "must take an example of one client at least (a larger share, fewer clients)", self.share)
        return withheld


@dataclass(frozen=True, kw_only=True)
class ClientImages:
    """All images that the clients train on, without their labels: FedDFusion's proxy in FedGen's experiments (Zhu et al., ICML 2021).

    No federation has such a set; it bounds what a public set can give.
    """

    held_out = 0.0

    def __call__(self, task: Task, withheld: Examples, held: Examples, seed: Seed) -> Examples:
        """The clients' examples."""
        return held


@dataclass(frozen=True, kw_only=True)
class OtherDataset:
    """The training images of another data set, without their labels, scaled to networks as the clients' images are.

    Args:
        data: a source of data; its images must have the shape of the clients'.
    """

    data: Callable[[], tuple[Task, Examples, Examples]]

    held_out = 0.0

    def __call__(self, task: Task, withheld: Examples, held: Examples, seed: Seed) -> Examples:
        """Its training images.

        Raises:
            ConfigError: they cannot be read, or have another shape than the clients'.
        """
        return replace(images_of(self.data, task).to(held.y.device), mean=held.mean, std=held.std)


def images_of(data: Callable[[], tuple[Task, Examples, Examples]], task: Task) -> Examples:
    """Another data set's training images.

    Raises:
        ConfigError: they cannot be read, or have another shape than the task's.
    """
    try:
        other, train, _ = data()
    except ValueError as error:
        raise ConfigError(f"data.{error}") from error
    rule = f"must have images of the clients' shape {task.shape} (data.size, data.channels), as {other.name} has not"
    require(other.shape == task.shape, "data", rule, other.shape)
    return train


BLOCK = 256
"""Images that are made at once."""


@dataclass(frozen=True, kw_only=True)
class Noise:
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
        rng, brightest = (seed / "noise").numpy(), task.max_pixel * held.scale
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
