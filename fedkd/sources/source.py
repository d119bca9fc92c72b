"""The contract of a source: the images of each epoch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fedkd.seed import Seed
from fedkd.types import Examples, Metrics, Task, Tensors


@dataclass(frozen=True)
class Knowledge:
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
class Pool:
    """Images to train on for an epoch, what the source remembers for the next, and what it measured."""

    examples: Examples
    memory: Tensors
    metrics: Metrics


class Source(ABC):
    """Where images come from. ``labelled`` says whether their labels may be learnt from."""

    labelled: ClassVar[bool] = False
    looks: ClassVar[bool] = False
    """The source looks at teacher and student: it has no images without them."""

    @abstractmethod
    def open(self, task: Task, train: Examples, seed: Seed) -> Examples | None:
        """The images that do not change; None where all are made. ``train`` are the task's own.

        Raises:
            ValueError: naming the key, the rule and the value.
        """

    def fewest(self, pool: Examples | None) -> int:
        """How many images an epoch has at least."""
        assert pool is not None, "a source that makes no images has some"
        return len(pool)

    def refresh(self, pool: Examples | None, memory: Tensors, knowledge: Knowledge, seed: Seed, dtype: torch.dtype) -> Pool:
        """The images of one epoch."""
        assert pool is not None, "a source that makes no images has some"
        return Pool(pool, memory, {})
