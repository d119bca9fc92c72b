"""Feature shift and label noise by client: rotation, noise, blur, color, domains, and wrong labels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, isfinite
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.seed import Seed
from fedkd.types import Examples, Partition

CHUNK_SIZE, CHUNK_VALUES = 4096, 2**24
"""Images that are transformed at once, as floats, at most; and their values, where 16 images have fewer."""


# ----------------------------------------------------------------------------------------------- the images of one client
@dataclass(frozen=True, kw_only=True)
class ClientView:
    """The levels of one client. The defaults change neither images nor labels.

    Args:
        rotation: degrees, counter-clockwise.
        domain: degrees, counter-clockwise, in addition to ``rotation``: the angle of the client's domain.
        noise: standard deviation of Gaussian noise as a fraction of the full scale, >= 0.
        blur: standard deviation of a Gaussian blur in pixels, >= 0.
        brightness: factor of all values, >= 0.
        contrast: factor of the differences from the image's mean gray value, >= 0.
        hue: shift of the hue as a fraction of the color circle, -0.5..0.5; 0 for gray images.
        label_noise: fraction of the client's training labels that are replaced, 0..1.
    """

    rotation: float = 0.0
    domain: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    hue: float = 0.0
    label_noise: float = 0.0


def apply_views(shards: Sequence[Examples], views: Sequence[ClientView], full: float, seed: Seed, name: str) -> list[Examples]:
    """Transform the images of all clients. The result is computed on the CPU, and returned on the device of ``shards``.

    Args:
        shards: each client's examples. Where two clients have the same example, each gets its own version of the image.
        views: each client's levels.
        full: the byte that stands for the full scale.
        seed: random stream of the noise; each client and ``name`` have a stream of their own.
        name: ``train`` or ``test``.

    Returns:
        Each client's examples. The images of all clients are in one new storage.
    """
    device, shape = shards[0].x.device, shards[0].x.shape[1:]
    storage = torch.empty((sum(map(len, shards)), *shape), dtype=torch.uint8)
    rows_by_client = torch.arange(len(storage)).split([len(shard) for shard in shards])
    with single_thread():
        for client, (shard, view, rows) in enumerate(zip(shards, views, rows_by_client)):
            generator = (seed / client / name).torch()
            for chunk in torch.arange(len(shard)).split(chunk_size(shape.numel())):
                storage[rows[chunk]] = apply_view(view, shard.gather(shard.storage_rows(chunk.to(device))).cpu(), full, generator)
    storage = storage.to(device)
    return [replace(shard, x=storage, rows=rows.to(device)) for shard, rows in zip(shards, rows_by_client)]


def chunk_size(num_values: int) -> int:
    """The number of images of so many values that are transformed at once: a multiple of 16, of which random noise does not depend."""
    return min(CHUNK_SIZE, max(16, CHUNK_VALUES // max(num_values, 1) // 16 * 16))


def apply_view(view: ClientView, stored: Tensor, full: float, generator: torch.Generator) -> Tensor:  # [N, C, H, W] -> the same shape
    """Rotate images, blur them, change their colors, and add noise, in this order. The result is rounded to bytes once, at the end.

    The rotation is bilinear, about the center; new pixels are 0. The blur mirrors the image at its edges.

    Args:
        view: the levels.
        stored: images, unsigned bytes.
        full: the byte that stands for the full scale.
        generator: draws the noise.
    """
    from torchvision.transforms.v2 import InterpolationMode, functional  # imported late: it takes seconds, and most runs need no view

    x = stored.float() / full
    if angle := view.rotation + view.domain:
        x = functional.rotate(x, angle, InterpolationMode.BILINEAR)
    if view.blur:
        vertical, horizontal = (blur_matrix(side, view.blur) for side in x.shape[-2:])
        x = vertical @ x @ horizontal.T
    if view.brightness != 1:
        x = functional.adjust_brightness(x, view.brightness)
    if view.contrast != 1:
        x = functional.adjust_contrast(x, view.contrast)
    if view.hue:
        x = functional.adjust_hue(x, view.hue)
    if view.noise:
        x = x + view.noise * torch.randn(x.shape, generator=generator)
    return (x * full).round_().clamp_(0, full).to(torch.uint8)


def blur_matrix(side: int, deviation: float) -> Tensor:  # [side, side]
    """A Gaussian blur along one axis as a matrix, which is far faster than a convolution.

    Args:
        side: pixels of the axis.
        deviation: standard deviation in pixels; the kernel extends three deviations to each side.
    """
    from torchvision.transforms.v2 import functional

    reach = min(ceil(3 * min(deviation, side)), side - 1)
    return functional.gaussian_blur(torch.eye(side)[None], [1, 2 * reach + 1], [deviation] * 2)[0]


def full_scale(examples: Examples) -> float:
    """The byte of a white pixel: ``scale``, or 255 where images are kept as 0..255."""
    return examples.scale if len(examples.x) == 0 or examples.x.max() <= examples.scale else 255.0


@contextmanager
def single_thread() -> Iterator[None]:
    """Use one torch thread inside the block. The number of threads changes the algorithm of a matrix product, and so its last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ the shift of all clients
@dataclass(frozen=True, kw_only=True)
class Shift:
    """Feature shift and label noise. All parameters can be combined; each has no effect at 0.

    A client's levels are drawn once. They apply to its training examples and to its local test set; label noise applies to training
    examples only. The global test set is not changed.

    Args:
        rotation: images are rotated by an angle from ``-rotation..rotation``, 0..180 degrees.
        domains: angles in degrees, counter-clockwise. Client k has the angle k modulo their number; null: none. Rotated MNIST has 0, 15,
            30, 45, 60, 75.
        noise: standard deviation of Gaussian noise on pixels as a fraction of the full scale, >= 0.
        blur: standard deviation of a Gaussian blur in pixels, >= 0.
        color_jitter: brightness and contrast are multiplied by factors from ``1 - color_jitter..1 + color_jitter``, and hues are shifted
            by at most half of it, 0..1.
        label_noise: fraction of a client's training labels that are replaced, 0..1.
        label_noise_kind: ``symmetric``: a label is replaced by any other class with equal probability; ``pair``: by the next class;
            ``matrix``: by a class that is drawn from the row of its class in ``label_noise_matrix``, which may be the same class.
        label_noise_matrix: the transition matrix of ``matrix`` [C, C]: row c holds the probabilities of the labels that replace class c.
            With ``label_noise=1`` and ``per_client=same`` the labels of all noisy clients follow it. null for the other kinds.
        noisy_client_fraction: fraction of the clients that have label noise, 0..1.
        per_client: ``random``: each client draws its levels of noise, blur, and label noise uniformly from 0 to the parameter's value;
            ``same``: all clients have the parameter's value.

    Raises:
        ConfigError: a value is out of range.
    """

    rotation: float
    domains: Sequence[float] | None
    noise: float
    blur: float
    color_jitter: float
    label_noise: float
    label_noise_kind: Literal["symmetric", "pair", "matrix"]
    label_noise_matrix: Sequence[Sequence[float]] | None
    noisy_client_fraction: float
    per_client: Literal["random", "same"]

    def __post_init__(self) -> None:
        require(0 <= self.rotation <= 180, "rotation", "must be in 0..180 degrees", self.rotation)
        for name in ("noise", "blur"):
            value = getattr(self, name)
            require(0 <= value and isfinite(value), name, "must be >= 0 (0 is none) and finite", value)
        for name in ("color_jitter", "label_noise", "noisy_client_fraction"):
            require(0 <= getattr(self, name) <= 1, name, "must be in 0..1", getattr(self, name))
        angles = self.domains
        valid = angles is None or (len(angles) > 0 and all(isfinite(angle) for angle in angles))
        require(valid, "domains", "must hold one or more angles in degrees, or be null", angles)
        choices = {"label_noise_kind": ("symmetric", "pair", "matrix"), "per_client": ("random", "same")}
        for name, known in choices.items():
            require(getattr(self, name) in known, name, f"must be one of {', '.join(known)}", getattr(self, name))
        rows = self.label_noise_matrix
        given = "must be given with label_noise_kind=matrix, and be null with the other kinds"
        require((rows is not None) == (self.label_noise_kind == "matrix"), "label_noise_matrix", given, rows)
        for row in rows or ():
            valid = len(row) == len(rows or ()) and min(row) >= 0 and abs(sum(row) - 1) < 1e-6
            require(valid, "label_noise_matrix", "must hold a row per class, of as many probabilities, whose sum is 1", list(row))

    @property
    def changes_images(self) -> bool:
        """Whether the images of a client may change."""
        return bool(self.rotation or self.domains or self.noise or self.blur or self.color_jitter)

    @property
    def changes_labels(self) -> bool:
        """Whether a client may have wrong labels."""
        return self.label_noise > 0 and self.noisy_client_fraction > 0

    def __call__(
        self, train: Examples, test: Examples, partition: Partition, num_classes: int, seed: Seed
    ) -> tuple[list[Examples], list[Examples]]:
        """The examples of all clients.

        Args:
            train: the training set.
            test: the test set.
            partition: the indices of each client's examples.
            num_classes: number of classes, C.
            seed: random stream.

        Returns:
            Each client's training examples and each client's local test set. All clients share one storage of training images; it is that
            of ``train`` if the shift does not change images.

        Raises:
            ConfigError: there is label noise, and only one class.
        """
        train_shards, test_shards = [train.subset(index) for index in partition.train], [test.subset(index) for index in partition.test]
        if not (self.changes_images or self.changes_labels):
            return train_shards, test_shards
        views = self.views(len(train_shards), train.x.shape[1], seed)
        if self.changes_images:
            full = full_scale(train)
            train_shards = apply_views(train_shards, views, full, seed / "noise", "train")
            test_shards = apply_views(test_shards, views, full, seed / "noise", "test")
        if self.changes_labels:
            require(num_classes > 1, "label_noise", "must be 0 where there is only one class", self.label_noise)
            rows = len(self.label_noise_matrix or ())
            require(rows in (0, num_classes), "label_noise_matrix", f"must have a row for each of {num_classes} classes", f"{rows} rows")
            streams = [seed / "label_noise" / client / "labels" for client in range(len(train_shards))]
            train_shards = [
                replace(shard, y=self._with_wrong_labels(shard.y, view.label_noise, num_classes, stream))
                for shard, view, stream in zip(train_shards, views, streams)
            ]
        return train_shards, test_shards

    def views(self, num_clients: int, num_channels: int, seed: Seed) -> list[ClientView]:
        """Every client's levels.

        Each parameter has random streams of its own, so that its levels do not depend on the other parameters. They are proportional to
        the parameter's value.

        Args:
            num_clients: number of clients, K.
            num_channels: channels of the images, 1 or 3.
            seed: random stream.
        """
        noisy = (seed / "noisy_clients").numpy().permutation(num_clients)[: int(self.noisy_client_fraction * num_clients + 0.5)]
        max_hue = self.color_jitter / 2 if num_channels == 3 else 0.0
        return [
            ClientView(
                rotation=_uniform(-self.rotation, self.rotation, seed / "rotation" / client),
                domain=float(self.domains[client % len(self.domains)]) if self.domains else 0.0,
                noise=self._level(self.noise, seed / "noise" / client),
                blur=self._level(self.blur, seed / "blur" / client),
                brightness=_uniform(1 - self.color_jitter, 1 + self.color_jitter, seed / "brightness" / client),
                contrast=_uniform(1 - self.color_jitter, 1 + self.color_jitter, seed / "contrast" / client),
                hue=_uniform(-max_hue, max_hue, seed / "hue" / client),
                label_noise=self._level(self.label_noise, seed / "label_noise" / client) if client in noisy else 0.0,
            )
            for client in range(num_clients)
        ]

    def _level(self, maximum: float, stream: Seed) -> float:
        """A client's level of the parameter with the value ``maximum``."""
        return maximum if self.per_client == "same" else _uniform(0.0, maximum, stream)

    def _with_wrong_labels(self, y: Tensor, fraction: float, num_classes: int, stream: Seed) -> Tensor:  # [n] -> [n]
        """``y`` with a fraction of the labels replaced by other ones. The number of wrong labels is rounded at random."""
        rng = stream.numpy()
        number = int(fraction * len(y) + rng.random())
        index = torch.from_numpy(rng.permutation(len(y))[:number])
        labels = y.cpu().clone()
        if self.label_noise_matrix is not None:
            cumulative = np.cumsum(self.label_noise_matrix, axis=1)[labels[index].numpy()]
            labels[index] = torch.from_numpy((rng.random((number, 1)) * cumulative[:, -1:] >= cumulative).sum(1))
            return labels.to(y.device)
        offsets = rng.integers(1, num_classes, number) if self.label_noise_kind == "symmetric" else np.ones(number, np.int64)
        labels[index] = (labels[index] + torch.from_numpy(offsets)) % num_classes
        return labels.to(y.device)


def _uniform(low: float, high: float, stream: Seed) -> float:
    """A uniform random number from ``low..high``."""
    return float(low + (high - low) * stream.numpy().random())
