"""Sources of the images on which a student is trained: real, public, or synthetic."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import nn

from fedkd.distillation.image_synthesis import Synthesis, as_examples
from fedkd.distillation.public_data import DataSource, training_images
from fedkd.errors import require
from fedkd.models.ensemble import Member
from fedkd.seed import Seed
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Metrics, Task, Tensors


@dataclass(frozen=True)
class Teachers:
    """The models from which images are synthesized.

    Args:
        task: the classification task.
        members: the teachers.
        student: the student with its current tensors.
        weights: one per teacher; None: equal weights.
    """

    task: Task
    members: Sequence[Member]
    student: Member
    weights: Sequence[float] | None = None


@dataclass(frozen=True)
class ImagePool:
    """The images of one epoch.

    Args:
        examples: the images.
        state: tensors that the source needs in the next epoch.
        metrics: metrics of the source by name.
    """

    examples: Examples
    state: Tensors
    metrics: Metrics


class ImageSource(ABC):
    """A source of images for a distillation."""

    labeled: ClassVar[bool] = False
    """Whether the labels of the images may be used."""

    needs_teachers: ClassVar[bool] = False
    """Whether images are made from teachers and student, so that there are none without them."""

    @abstractmethod
    def fixed_images(self, task: Task, train: Examples, seed: Seed) -> Examples | None:
        """The images that do not change between epochs. None if all images are synthesized.

        Args:
            task: the classification task.
            train: the training examples of the task.
            seed: seed of random choices.

        Raises:
            ConfigError: the images cannot be read or do not fit the task.
        """

    def min_images(self, fixed: Examples | None) -> int:
        """The minimum number of images of an epoch.

        Args:
            fixed: the result of :meth:`fixed_images`.
        """
        assert fixed is not None, "this source has fixed images"
        return len(fixed)

    def images_for_epoch(
        self, fixed: Examples | None, state: Tensors, teachers: Teachers | None, seed: Seed, dtype: torch.dtype
    ) -> ImagePool:
        """The images of one epoch.

        Args:
            fixed: the result of :meth:`fixed_images`.
            state: tensors that the source kept in the epoch before. Empty in the first epoch.
            teachers: the teachers, for sources with ``needs_teachers``.
            seed: seed of this epoch.
            dtype: type of synthesized images.
        """
        assert fixed is not None, "this source has fixed images"
        return ImagePool(fixed, state, {})


@dataclass(frozen=True, kw_only=True)
class Real(ImageSource):
    """The training images of the task.

    This is the setting of central distillation. For a federated run it is an upper bound, as no server has these images.

    Args:
        labels: whether their labels may be used.
    """

    labels: bool

    @property
    def labeled(self) -> bool:  # type: ignore[override]  # a class variable in other sources
        """Whether the labels of the images may be used."""
        return self.labels

    def fixed_images(self, task: Task, train: Examples, seed: Seed) -> Examples:
        """The training examples of the task."""
        return train


@dataclass(frozen=True, kw_only=True)
class Public(ImageSource):
    """The training images of another data set without their labels. Its classes can differ from those of the task.

    Args:
        data: ``() -> (task, training examples, test examples)``. Its images are normalized like those of the task.
        number: number of images, > 0, which are drawn once. None takes all.

    Raises:
        ConfigError: the number is out of its range.
    """

    data: DataSource
    number: int | None

    def __post_init__(self) -> None:
        require(self.number is None or self.number > 0, "number", "must be > 0 images, or null for all", self.number)

    def fixed_images(self, task: Task, train: Examples, seed: Seed) -> Examples:
        """The images of the other data set.

        Raises:
            ConfigError: they cannot be read, or have another shape than those of the task.
        """
        images = training_images(self.data, task)
        index = torch.randperm(len(images), generator=seed.torch())[: self.number].sort().values
        return replace(images.subset(index).without_labels().to(train.y.device), mean=train.mean, std=train.std)


@dataclass(frozen=True, kw_only=True)
class Synthetic(ImageSource):
    """Images that a generator makes without data. In each epoch :class:`fedkd.distillation.image_synthesis.Synthesis` makes one more batch.

    The student is trained on all batches so far, or on the latest ones. Labels are not used: the teachers' predictions take their place.

    Source:
        Zhang, Chen, Li, Lyu, Wu, Ding, Shen, Wu: DENSE: Data-free one-shot federated learning, NeurIPS 2022, and its public code, for one
            teacher or an ensemble.

    Args:
        generator: ``task -> module(noise, y)`` that makes images.
        optimizer: ``parameters -> optimizer`` of generator and noise.
        steps: training steps of the generator for each batch, > 0.
        batch_size: images per epoch, > 1.
        bn: weight of the distance to the teachers' BatchNorm statistics, >= 0.
        oh: weight of the cross-entropy with the drawn labels, >= 0.
        adv: weight of the disagreement with the student, >= 0.
        capacity: maximum number of images that are kept, the latest ones, >= batch_size. None keeps all.

    Deviations:
        - From the public code: images are not augmented before the generator's losses.
        - From the public code: the last batch of a generator is kept, not the best of all its steps.

    Raises:
        ConfigError: a value is out of its range, or the generator does not make images.
    """

    needs_teachers: ClassVar[bool] = True

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
        large_enough = self.capacity is None or self.capacity >= self.batch_size
        require(large_enough, "capacity", f"must be >= batch_size ({self.batch_size}), or null for all", self.capacity)

    @cached_property
    def synthesis(self) -> Synthesis:
        """The synthesis of one batch. There is one object per source, so that its training step is recorded once."""
        return Synthesis(self.generator, self.optimizer, self.steps, self.batch_size, self.bn, self.oh, self.adv)

    def fixed_images(self, task: Task, train: Examples, seed: Seed) -> None:
        """None: all images are synthesized."""
        return None

    def min_images(self, fixed: Examples | None) -> int:
        """The size of one batch: the number of images in the first epoch."""
        return self.batch_size

    def images_for_epoch(
        self, fixed: Examples | None, state: Tensors, teachers: Teachers | None, seed: Seed, dtype: torch.dtype
    ) -> ImagePool:
        """The images so far, and one more batch of them."""
        assert teachers is not None, "images are synthesized from teachers"
        weights = None if teachers.weights is None else torch.tensor(teachers.weights, dtype=dtype)
        x, terms = self.synthesis(teachers.members, teachers.student, teachers.task, seed, weights)
        images = torch.cat([state["images"], x]) if "images" in state else x
        images = images if self.capacity is None else images[-self.capacity :]
        return ImagePool(as_examples(images), {"images": images}, {f"synthesis_{name}": value for name, value in terms.items()})
