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

CHUNK_SIZE = 4096
"""Images that are computed at once, as floats."""


@dataclass(frozen=True, kw_only=True)
class ClientView:
    """One client's levels; without arguments, it sees images as they are.

    Args:
        rotation: degrees, counter-clockwise.
        domain: degrees likewise, on top of it: the angle of the domain that the client is in.
        noise: >= 0, standard deviation, as a share of the full scale.
        blur: >= 0, standard deviation in pixels.
        brightness: factor of all values.
        contrast: factor of the distances from the image's mean grey.
        hue: -0.5..0.5, part of the circle of colours by which they turn; 0 for grey images.
        label_noise: 0..1, share of its training labels that are replaced.
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
    """``shards`` as their clients see them, images in one new storage that all share; computed on the CPU, kept where they were.

    Args:
        shards: each client's examples; where two clients hold the same one, each gets its own version of it.
        views: each client's levels.
        full: the byte that counts as full scale.
        seed: of the noise, split by client and ``name``.
        name: of these shards, so that training and test examples have noise of their own.
    """
    device, shape = shards[0].x.device, shards[0].x.shape[1:]
    storage = torch.empty((sum(map(len, shards)), *shape), dtype=torch.uint8)
    places = torch.arange(len(storage)).split([len(shard) for shard in shards])
    with single_thread():
        for client, (shard, view, place) in enumerate(zip(shards, views, places)):
            random = (seed / client / name).torch()
            for part in torch.arange(len(shard)).split(CHUNK_SIZE):
                storage[place[part]] = apply_view(view, shard.gather(shard.storage_rows(part.to(device))).cpu(), full, random)
    storage = storage.to(device)
    return [replace(shard, x=storage, rows=place.to(device)) for shard, place in zip(shards, places)]


def apply_view(view: ClientView, stored: Tensor, full: float, random: torch.Generator) -> Tensor:  # [N, C, H, W]
    """Images as they look: turned, blurred, in other colours, and noisy, in this order; bytes, rounded once, at the end.

    Turning is bilinear, about the centre; what comes into the picture is 0. A blur sees the picture mirrored at its edges.

    Args:
        view: the levels.
        stored: unsigned bytes.
        full: the byte that counts as full scale.
        random: of the noise.
    """
    from torchvision.transforms.v2 import InterpolationMode, functional  # seconds, which a run that needs it not does not wait for

    x = stored.float() / full
    if angle := view.rotation + view.domain:
        x = functional.rotate(x, angle, InterpolationMode.BILINEAR)
    if view.blur:
        rows, columns = (blur_matrix(side, view.blur) for side in x.shape[-2:])
        x = rows @ x @ columns.T
    if view.brightness != 1:
        x = functional.adjust_brightness(x, view.brightness)
    if view.contrast != 1:
        x = functional.adjust_contrast(x, view.contrast)
    if view.hue:
        x = functional.adjust_hue(x, view.hue)
    if view.noise:
        x = x + view.noise * torch.randn(x.shape, generator=random)
    return (x * full).round_().clamp_(0, full).to(torch.uint8)


def blur_matrix(side: int, deviation: float) -> Tensor:  # [side, side]
    """A Gaussian blur along one axis of ``side`` pixels, three standard deviations wide to each hand, as a matrix: far faster than a convolution."""
    from torchvision.transforms.v2 import functional

    reach = min(ceil(3 * min(deviation, side)), side - 1)
    return functional.gaussian_blur(torch.eye(side)[None], [1, 2 * reach + 1], [deviation] * 2)[0]


def full_scale(examples: Examples) -> float:
    """The byte that stands for white: the one that counts as 1.0, or 255 where images are kept as 0..255."""
    return examples.scale if len(examples.x) == 0 or examples.x.max() <= examples.scale else 255.0


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread within the block: on their number hangs which algorithm torch takes for a product, and so the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Each client sees its images in its own way, and some labels of its training examples are wrong. All knobs compose; at 0 they do nothing.

    A client's levels are drawn once, and hold for its training examples and its test shard alike (wrong labels: training only). The
    balanced test set stays as it is.

    Args:
        rotation: 0..180 degrees: images are turned by an angle from ``-rotation..rotation``.
        domains: angles in degrees, counter-clockwise, of which every client has one, in turn; null: none. Rotated MNIST is 0, 15, 30, 45, 60, 75.
        noise: >= 0, standard deviation of Gaussian noise on pixels, as a share of the full scale.
        blur: >= 0, standard deviation in pixels of a Gaussian blur.
        color_jitter: 0..1: brightness and contrast are multiplied by factors from ``1 - color_jitter..1 + color_jitter``; hues turn by up to half of it.
        label_noise: 0..1, share of a client's training labels that are replaced.
        label_noise_kind: ``symmetric``: by any other class alike; ``pair``: by the next class.
        noisy_client_fraction: 0..1, share of the clients that have wrong labels at all.
        per_client: ``random``: each client draws its levels of noise, blur and label noise uniformly from 0 to the knob; ``same``: all have the knob's.
    """

    rotation: float
    domains: Sequence[float] | None
    noise: float
    blur: float
    color_jitter: float
    label_noise: float
    label_noise_kind: Literal["symmetric", "pair"]
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
        choices = {"label_noise_kind": ("symmetric", "pair"), "per_client": ("random", "same")}
        for name, known in choices.items():
            require(getattr(self, name) in known, name, f"must be one of {', '.join(known)}", getattr(self, name))

    @property
    def changes_images(self) -> bool:
        """Some client may see its images otherwise than they are."""
        return bool(self.rotation or self.domains or self.noise or self.blur or self.color_jitter)

    @property
    def changes_labels(self) -> bool:
        """Some client may have wrong labels."""
        return self.label_noise > 0 and self.noisy_client_fraction > 0

    def __call__(
        self, train: Examples, test: Examples, partition: Partition, num_classes: int, seed: Seed
    ) -> tuple[list[Examples], list[Examples]]:
        """Each client's training examples and test shard as the client sees them; all training examples share their images' storage,
        and where images stay as they are, it is that of ``train``.

        Raises:
            ConfigError: labels shall be wrong where there is but one class.
        """
        held, shown = [train.subset(index) for index in partition.train], [test.subset(index) for index in partition.test]
        if not (self.changes_images or self.changes_labels):
            return held, shown
        views = self.views(len(held), train.x.shape[1], seed)
        if self.changes_images:
            full = full_scale(train)
            held, shown = apply_views(held, views, full, seed / "noise", "train"), apply_views(shown, views, full, seed / "noise", "test")
        if self.changes_labels:
            require(num_classes > 1, "label_noise", "must be 0 where there is but one class", self.label_noise)
            streams = [seed / "label_noise" / client / "labels" for client in range(len(held))]
            held = [replace(one, y=self._mixed_up(one.y, view.label_noise, num_classes, at)) for one, view, at in zip(held, views, streams)]
        return held, shown

    def views(self, num_clients: int, num_channels: int, seed: Seed) -> list[ClientView]:
        """Every client's levels. Each knob draws from streams of its own, so none depends on another; a larger knob moves levels in proportion."""
        noisy = (seed / "noisy_clients").numpy().permutation(num_clients)[: int(self.noisy_client_fraction * num_clients + 0.5)]
        turn = self.color_jitter / 2 if num_channels == 3 else 0.0
        return [
            ClientView(
                rotation=_between(-self.rotation, self.rotation, seed / "rotation" / client),
                domain=float(self.domains[client % len(self.domains)]) if self.domains else 0.0,
                noise=self._level("noise", seed / "noise" / client),
                blur=self._level("blur", seed / "blur" / client),
                brightness=_between(1 - self.color_jitter, 1 + self.color_jitter, seed / "brightness" / client),
                contrast=_between(1 - self.color_jitter, 1 + self.color_jitter, seed / "contrast" / client),
                hue=_between(-turn, turn, seed / "hue" / client),
                label_noise=self._level("label_noise", seed / "label_noise" / client) if client in noisy else 0.0,
            )
            for client in range(num_clients)
        ]

    def _level(self, knob: str, stream: Seed) -> float:
        """A client's level of ``knob``."""
        return getattr(self, knob) if self.per_client == "same" else _between(0.0, getattr(self, knob), stream)

    def _mixed_up(self, y: Tensor, share: float, num_classes: int, stream: Seed) -> Tensor:  # [n]
        """``y`` with ``share`` of the labels replaced, a fraction of one rounded at random; those replaced are all wrong."""
        random = stream.numpy()
        number = int(share * len(y) + random.random())
        which = torch.from_numpy(random.permutation(len(y))[:number])
        steps = random.integers(1, num_classes, number) if self.label_noise_kind == "symmetric" else np.ones(number, np.int64)
        wrong = y.cpu().clone()
        wrong[which] = (wrong[which] + torch.from_numpy(steps)) % num_classes
        return wrong.to(y.device)


def _between(low: float, high: float, stream: Seed) -> float:
    """Drawn uniformly."""
    return float(low + (high - low) * stream.numpy().random())
