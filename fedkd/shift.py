"""What sets the clients' images and labels apart beside who holds which: rotation, noise, blur, colour, domains, wrong labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedkd.check import require
from fedkd.seed import Seed
from fedkd.types import Examples, Partition
from fedkd.view import View, full_scale, seen


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
        colour: 0..1: brightness and contrast are multiplied by factors from ``1 - colour..1 + colour``; colours turn by up to half of it.
        label_noise: 0..1, share of a client's training labels that are replaced.
        label_noise_kind: ``symmetric``: by any other class alike; ``pair``: by the next class.
        noisy_clients: 0..1, share of the clients that have wrong labels at all.
        levels: ``drawn``: each client draws its levels of noise, blur and label noise uniformly from 0 to the knob; ``same``: all have the knob's.
    """

    rotation: float
    domains: Sequence[float] | None
    noise: float
    blur: float
    colour: float
    label_noise: float
    label_noise_kind: Literal["symmetric", "pair"]
    noisy_clients: float
    levels: Literal["drawn", "same"]

    def __post_init__(self) -> None:
        require(0 <= self.rotation <= 180, "rotation", "must be in 0..180 degrees", self.rotation)
        for name in ("noise", "blur"):
            value = getattr(self, name)
            require(0 <= value and isfinite(value), name, "must be >= 0 (0 is none) and finite", value)
        for name in ("colour", "label_noise", "noisy_clients"):
            require(0 <= getattr(self, name) <= 1, name, "must be in 0..1", getattr(self, name))
        angles = self.domains
        valid = angles is None or (len(angles) > 0 and all(isfinite(angle) for angle in angles))
        require(valid, "domains", "must hold one or more angles in degrees, or be null", angles)
        choices = {"label_noise_kind": ("symmetric", "pair"), "levels": ("drawn", "same")}
        for name, known in choices.items():
            require(getattr(self, name) in known, name, f"must be one of {', '.join(known)}", getattr(self, name))

    @property
    def changes_images(self) -> bool:
        """Some client may see its images otherwise than they are."""
        return bool(self.rotation or self.domains or self.noise or self.blur or self.colour)

    @property
    def changes_labels(self) -> bool:
        """Some client may have wrong labels."""
        return self.label_noise > 0 and self.noisy_clients > 0

    def __call__(
        self, train: Examples, test: Examples, partition: Partition, num_classes: int, seed: Seed
    ) -> tuple[list[Examples], list[Examples]]:
        """Each client's training examples and test shard as the client sees them; all training examples share their images' storage,
        and where images stay as they are, it is that of ``train``.

        Raises:
            ValueError: labels shall be wrong where there is but one class.
        """
        held, shown = [train.subset(index) for index in partition.train], [test.subset(index) for index in partition.test]
        if not (self.changes_images or self.changes_labels):
            return held, shown
        views = self.views(len(held), train.x.shape[1], seed)
        if self.changes_images:
            full = full_scale(train)
            held, shown = seen(held, views, full, seed / "noise", "train"), seen(shown, views, full, seed / "noise", "test")
        if self.changes_labels:
            require(num_classes > 1, "label_noise", "must be 0 where there is but one class", self.label_noise)
            streams = [seed / "label_noise" / client / "labels" for client in range(len(held))]
            held = [replace(one, y=self._mixed_up(one.y, view.label_noise, num_classes, at)) for one, view, at in zip(held, views, streams)]
        return held, shown

    def views(self, num_clients: int, num_channels: int, seed: Seed) -> list[View]:
        """Every client's levels. Each knob draws from streams of its own, so none depends on another; a larger knob moves levels in proportion."""
        noisy = (seed / "noisy_clients").numpy().permutation(num_clients)[: int(self.noisy_clients * num_clients + 0.5)]
        turn = self.colour / 2 if num_channels == 3 else 0.0
        return [
            View(
                rotation=_between(-self.rotation, self.rotation, seed / "rotation" / client),
                domain=float(self.domains[client % len(self.domains)]) if self.domains else 0.0,
                noise=self._level("noise", seed / "noise" / client),
                blur=self._level("blur", seed / "blur" / client),
                brightness=_between(1 - self.colour, 1 + self.colour, seed / "brightness" / client),
                contrast=_between(1 - self.colour, 1 + self.colour, seed / "contrast" / client),
                hue=_between(-turn, turn, seed / "hue" / client),
                label_noise=self._level("label_noise", seed / "label_noise" / client) if client in noisy else 0.0,
            )
            for client in range(num_clients)
        ]

    def _level(self, knob: str, stream: Seed) -> float:
        """A client's level of ``knob``."""
        return getattr(self, knob) if self.levels == "same" else _between(0.0, getattr(self, knob), stream)

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
