"""Public data for strategies with server-side distillation: none, held out by clients, the clients' images, another data set, or noise."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedkd.errors import ConfigError, require
from fedkd.seed import Seed
from fedkd.types import Examples, Task

DataSource = Callable[[], tuple[Task, Examples, Examples]]
"""A data set: ``() -> (task, training examples, test examples)``."""


@dataclass(frozen=True, kw_only=True)
class NoPublicData:
    """No public data. Most strategies need none."""

    held_out_fraction = 0.0

    def __call__(self, task: Task, held_out: Examples, client_examples: Examples, seed: Seed) -> Examples | None:
        """None."""
        return None


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A share of every client's training examples, without their labels. The clients train on the rest.

    Args:
        share: fraction of each client's training examples, in 0..1, both excluded.

    Raises:
        ConfigError: the share is out of its range.
    """

    share: float

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "share", "must be a share in 0..1, both excluded", self.share)

    @property
    def held_out_fraction(self) -> float:
        """The fraction of each client's training examples that is held out."""
        return self.share

    def __call__(self, task: Task, held_out: Examples, client_examples: Examples, seed: Seed) -> Examples:
        """The examples that the clients hold out.

        Raises:
            ConfigError: there are none.
        """
        require(
            len(held_out) > 0, "share", "must hold out at least one example of one client (a larger share, or fewer clients)", self.share
        )
        return held_out


@dataclass(frozen=True, kw_only=True)
class ClientImages:
    """All images on which the clients train, without their labels.

    This is the proxy data of FedDFusion in FedGen's experiments (Zhu et al., ICML 2021). A real federation has no such data, so the results
    are an upper bound for public data.
    """

    held_out_fraction = 0.0

    def __call__(self, task: Task, held_out: Examples, client_examples: Examples, seed: Seed) -> Examples:
        """The training examples of all clients."""
        return client_examples


@dataclass(frozen=True, kw_only=True)
class OtherDataset:
    """The training images of another data set, without their labels, normalized like the clients' images.

    Args:
        data: ``() -> (task, training examples, test examples)``. Its images must have the shape of the clients' images.
    """

    data: DataSource

    held_out_fraction = 0.0

    def __call__(self, task: Task, held_out: Examples, client_examples: Examples, seed: Seed) -> Examples:
        """The training images of the data set.

        Raises:
            ConfigError: the data cannot be read, or their images have another shape than the clients' images.
        """
        examples = training_images(self.data, task).to(client_examples.y.device)
        return replace(examples, mean=client_examples.mean, std=client_examples.std)


def training_images(data: DataSource, task: Task) -> Examples:
    """The training examples of another data set.

    Args:
        data: the data set.
        task: the task whose images must have the same shape.

    Raises:
        ConfigError: the data cannot be read, or their images have another shape.
    """
    try:
        other, train, _ = data()
    except ValueError as error:
        raise ConfigError(f"data.{error}") from error
    rule = f"must have images of the clients' shape {task.shape} (set data.size or data.channels), unlike {other.name}"
    require(other.shape == task.shape, "data", rule, other.shape)
    same = (other.input, other.vocabulary) == (task.input, task.vocabulary)
    require(
        same, "data", f"must have {task.input} as inputs, with the clients' vocabulary if they are tokens", f"{other.name} ({other.input})"
    )
    return train


CHUNK_SIZE = 256
"""Number of images that are computed at a time. All of them as doubles may not fit into memory."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Images of Gaussian noise whose amplitude decreases with the spatial frequency f as ``1 / f^exponent``.

    The exponent of natural images is near 1. Noise needs no data. It shows how a method works with images that belong to no class. Images
    of a trained generator are part of the methods that train it (DENSE, FedFTG).

    Args:
        size: number of images, > 0 and at most 10 million.
        exponent: exponent of the frequency, >= 0. 0 is white noise.

    Raises:
        ConfigError: a value is out of its range.
    """

    size: int
    exponent: float

    held_out_fraction = 0.0

    def __post_init__(self) -> None:
        require(0 < self.size <= 10_000_000, "size", "must be > 0 and at most 10 million", self.size)
        require(self.exponent >= 0, "exponent", "must be >= 0 (0 is white noise)", self.exponent)

    def __call__(self, task: Task, held_out: Examples, client_examples: Examples, seed: Seed) -> Examples:
        """The images [size, channels, height, width]. Each of them ranges from black to full brightness.

        Raises:
            ConfigError: the task has no images.
        """
        rule = f"must be held_out, client_images or other_dataset for {task.input}, for which noise of image pixels has no meaning"
        require(task.input == "image", "public_data", rule, "noise")
        rng, full_scale = (seed / "noise").numpy(), task.max_pixel * client_examples.scale
        sizes = [min(CHUNK_SIZE, self.size - begin) for begin in range(0, self.size, CHUNK_SIZE)]
        chunks = [np.round(full_scale * self.noise((size, *task.shape), rng)).astype(np.uint8) for size in sizes]
        x, y = torch.from_numpy(np.concatenate(chunks)), torch.zeros(self.size, dtype=torch.int64)
        return Examples(x, y, client_examples.scale, client_examples.mean, client_examples.std).to(client_examples.y.device)

    def noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Random images of the given shape [N, channels, height, width]. The values of each image range from 0 to 1."""
        frequency = np.hypot(np.fft.fftfreq(shape[-2])[:, None], np.fft.rfftfreq(shape[-1])[None])
        frequency[0, 0] = np.inf if self.exponent else 1.0  # no noise in the mean of the image
        image = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) / frequency**self.exponent, s=shape[-2:])
        low, high = (bound(image, axis=(1, 2, 3), keepdims=True) for bound in (np.min, np.max))
        return (image - low) / (high - low)
