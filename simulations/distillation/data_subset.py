"""The part of a data set that a distillation uses: the first classes, some images of each class, and a validation split."""

from dataclasses import replace

import numpy as np
import torch
from omegaconf import DictConfig

from fedkd.errors import require
from fedkd.partition.validation_split import split_validation
from fedkd.seed import Seed
from fedkd.types import Examples, Task


def select_images(config: DictConfig, task: Task, train: Examples, test: Examples) -> tuple[Task, Examples, Examples]:
    """Apply ``num_classes``, ``num_train_images`` and ``validation_fraction``. The selection is the same for every seed of the training.

    Returns:
        The task with the remaining classes, its training images, and the images that accuracies are measured on: the test set, or the
        validation split if ``validation_fraction`` is not 0. Both keep the digests of the whole sets.

    Raises:
        ConfigError: the data set has fewer classes, or fewer images of a class, than requested.
    """
    digests, left_out = (train.digest, test.digest), train.left_out
    if config.num_classes is not None:
        rule = f"must be at most the number of classes of the data, {task.num_classes}"
        require(config.num_classes <= task.num_classes, "num_classes", rule, config.num_classes)
        task = replace(task, num_classes=config.num_classes, class_names=task.class_names[: config.num_classes])
        train, test = (examples.subset(torch.nonzero(examples.y < config.num_classes).flatten()) for examples in (train, test))
    if config.num_train_images is not None:
        train = _balanced_subset(train, task.num_classes, config.num_train_images)
    if config.validation_fraction:
        (remaining,), (held_out,) = split_validation([np.arange(len(train))], config.validation_fraction, Seed(0) / "validation")
        train, test = train.subset(remaining), train.subset(held_out)
    return task, replace(train, digest=digests[0], left_out=left_out), replace(test, digest=digests[1])


def _balanced_subset(train: Examples, num_classes: int, num_images: int) -> Examples:
    """``num_images`` training images, equally many of each class."""
    per_class = num_images // num_classes
    smallest = int(torch.bincount(train.y, minlength=num_classes).min())
    rule = f"must be at least one and at most {smallest} images of each of {num_classes} classes"
    require(1 <= per_class <= smallest, "num_train_images", rule, num_images)
    rng = (Seed(0) / "examples").numpy()
    indices = [rng.permutation(np.flatnonzero(train.y.numpy() == label))[:per_class] for label in range(num_classes)]
    return train.subset(np.sort(np.concatenate(indices)))
