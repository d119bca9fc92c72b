"""Images made from what the teachers know, against the student: no data at all."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import nn

from fedkd.check import require
from fedkd.optimize import OptimizerFactory
from fedkd.seed import Seed
from fedkd.sources.source import Knowledge, Pool, Source
from fedkd.synthesis import Synthesis, as_seen, stacked
from fedkd.types import Examples, Task, Tensors


@dataclass(frozen=True, kw_only=True)
class Synthetic(Source):
    """Every epoch a generator makes one batch more, fitted by :class:`fedkd.synthesis.Synthesis`: the teachers are sure of its labels, their
    BatchNorm layers find their statistics in it, and the student disagrees. The student learns on all batches so far, or the last ones.

    DENSE's way (Zhang et al., NeurIPS 2022; its public code), for one teacher or an ensemble. Labels are not learnt from: the teachers'
    answers take their place.

    Deviations: images are not augmented before the generator's losses see them, and the last batch of a generator is kept, not the best
    of all its steps.

    Args:
        generator: ``task -> module(noise, y)`` of images.
        optimizer: ``parameters -> optimizer`` of generator and noise.
        steps: > 0, of the generator for each batch.
        batch_size: > 1, images made in an epoch.
        bn: >= 0, weight of the distance to the teachers' BatchNorm statistics.
        oh: >= 0, weight of the cross-entropy with the drawn labels.
        adv: >= 0, weight of the disagreement with the student.
        capacity: > 0, images that are kept, the latest; null is all.
    """

    looks: ClassVar[bool] = True

    generator: Callable[..., nn.Module]
    optimizer: OptimizerFactory
    steps: int
    batch_size: int
    bn: float
    oh: float
    adv: float
    capacity: int | None

    def __post_init__(self) -> None:
        makes = getattr(getattr(self.generator, "func", self.generator), "makes", "images")
        require(makes == "images", "generator", "must make images (image_conv)", makes)
        require(self.steps > 0, "steps", "must be > 0", self.steps)
        require(self.batch_size > 1, "batch_size", "must be > 1", self.batch_size)
        for name in ("bn", "oh", "adv"):
            require(getattr(self, name) >= 0, name, "must be >= 0 (0 switches it off)", getattr(self, name))
        require(
            self.capacity is None or self.capacity >= self.batch_size, "capacity", "must be >= batch_size, or null for all", self.capacity
        )

    @cached_property
    def synthesis(self) -> Synthesis:
        """Made once, so that its step is recorded once."""
        return Synthesis(self.generator, self.optimizer, self.steps, self.batch_size, self.bn, self.oh, self.adv)

    def open(self, task: Task, train: Examples, seed: Seed) -> None:
        return None

    def fewest(self, pool: Examples | None) -> int:
        return self.batch_size

    def refresh(self, pool: Examples | None, memory: Tensors, knowledge: Knowledge, seed: Seed, dtype: torch.dtype) -> Pool:
        teachers = stacked(knowledge.teachers)
        x, metrics = self.synthesis(knowledge.network, teachers, knowledge.learnt, knowledge.task, seed, knowledge.student)
        images = torch.cat([memory["images"], x]) if "images" in memory else x
        images = images if self.capacity is None else images[-self.capacity :]
        return Pool(as_seen(images), {"images": images}, {f"synthesis_{name}": value for name, value in metrics.items()})
