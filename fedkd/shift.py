"""What sets the clients' images and labels apart beside who holds which: rotation, noise, blur, colour, domains, wrong labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from fedkd.check import require
from fedkd.seed import Seed
from fedkd.types import Examples, Partition


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Each client sees its images in its own way, and some labels of its training examples are wrong. All knobs compose; at 0 they do nothing.

    A client's levels are drawn once, and hold for its training examples and its test shard alike (wrong labels: training only). The
    balanced test set stays as it is.

    Args:
        rotation: 0..180 degrees: images are turned by an angle from ``-rotation..rotation``.
        domains: angles in degrees, of which every client has one, in turn; null: none. Rotated MNIST is 0, 15, 30, 45, 60, 75.
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

    def __call__(
        self, train: Examples, test: Examples, partition: Partition, num_classes: int, seed: Seed
    ) -> tuple[list[Examples], list[Examples]]:
        """Each client's training examples and test shard as the client sees them; all training examples share their images' storage."""
        return [train.subset(index) for index in partition.train], [test.subset(index) for index in partition.test]
