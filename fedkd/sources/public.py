"""Images of another data set, without labels."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from fedkd.check import require
from fedkd.public.other import images_of
from fedkd.seed import Seed
from fedkd.sources.source import Source
from fedkd.types import Examples, Task


@dataclass(frozen=True, kw_only=True)
class Public(Source):
    """A public set, of other classes or another look if need be: the teacher's answers take the place of labels.

    Args:
        data: the source of images; its training images are used, brought to the task's mean and deviation.
        number: > 0, so many of them, drawn once; null is all.
    """

    data: Any
    number: int | None

    def __post_init__(self) -> None:
        require(self.number is None or self.number > 0, "number", "must be > 0 images, or null for all", self.number)

    def open(self, task: Task, train: Examples, seed: Seed) -> Examples:
        images = images_of(self.data, task)
        drawn = torch.randperm(len(images), generator=seed.torch())[: self.number].sort().values
        return replace(images.subset(drawn).unlabelled().to(train.y.device), mean=train.mean, std=train.std)
