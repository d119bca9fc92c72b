"""Sources of the images that a student is trained on: real, public, or synthetic."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from fedkd.distillation.image_synthesis import Synthesis, as_seen, stacked
from fedkd.distillation.public_data import images_of
from fedkd.errors import require
from fedkd.seed import Seed
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Metrics, Task, Tensors


@dataclass(frozen=True)
class Teachers:
    """What images may be made from: networks that know, and the one that learns from them.

    Args:
        task: what is learnt.
        network: the teachers' form.
        teachers: their tensors, one or several.
        student: the student's form.
        learnt: its tensors so far.
    """

    task: Task
    network: nn.Module
    teachers: list[Tensors]
    student: nn.Module
    learnt: Tensors


@dataclass(frozen=True)
class ImagePool:
    """Images to train on for an epoch, what the source remembers for the next, and what it measured."""

    examples: Examples
    memory: Tensors
    metrics: Metrics


class ImageSource(ABC):
    """Where images come from. ``labelled`` says whether their labels may be learnt from."""

    labelled: ClassVar[bool] = False
    looks: ClassVar[bool] = False
    """The source looks at teacher and student: it has no images without them."""

    @abstractmethod
    def open(self, task: Task, train: Examples, seed: Seed) -> Examples | None:
        """The images that do not change; None where all are made. ``train`` are the task's own.

        Raises:
            ConfigError: naming the key, the rule and the value.
        """

    def fewest(self, pool: Examples | None) -> int:
        """How many images an epoch has at least."""
        assert pool is not None, "a source that makes no images has some"
        return len(pool)

    def refresh(self, pool: Examples | None, memory: Tensors, knowledge: Teachers, seed: Seed, dtype: torch.dtype) -> ImagePool:
        """The images of one epoch."""
        assert pool is not None, "a source that makes no images has some"
        return ImagePool(pool, memory, {})


@dataclass(frozen=True, kw_only=True)
class Real(ImageSource):
    """The training images with their labels: the papers' own setting; after a federation, an upper bound that no server has.

    Args:
        labels: they may be learnt from.
    """

    labels: bool

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        return self.labels

    def open(self, task: Task, train: Examples, seed: Seed) -> Examples:
        return train


@dataclass(frozen=True, kw_only=True)
class Public(ImageSource):
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
        return replace(images.subset(drawn).without_labels().to(train.y.device), mean=train.mean, std=train.std)


@dataclass(frozen=True, kw_only=True)
class Synthetic(ImageSource):
    """Every epoch a generator makes one batch more, fitted by :class:`fedkd.distillation.image_synthesis.Synthesis`: the teachers are sure of its labels, their
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
        kind = getattr(getattr(self.generator, "func", self.generator), "output_kind", "images")
        require(kind == "images", "generator", "must make images (image_conv)", kind)
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

    def refresh(self, pool: Examples | None, memory: Tensors, knowledge: Teachers, seed: Seed, dtype: torch.dtype) -> ImagePool:
        teachers = stacked(knowledge.teachers)
        x, metrics = self.synthesis(knowledge.network, teachers, knowledge.learnt, knowledge.task, seed, knowledge.student)
        images = torch.cat([memory["images"], x]) if "images" in memory else x
        images = images if self.capacity is None else images[-self.capacity :]
        return ImagePool(as_seen(images), {"images": images}, {f"synthesis_{name}": value for name, value in metrics.items()})
