"""The two networks that a method brings together, and what it may ask of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fedkd.check import require
from fedkd.models.classifier import Classifier
from fedkd.types import Task


@dataclass(frozen=True)
class Sizes:
    """What a network gives for one image: the shapes of its stages' maps, and the size of its embedding."""

    name: str
    stages: tuple[torch.Size, ...]
    embedding: int

    @classmethod
    def of(cls, network: nn.Module, task: Task, name: str) -> "Sizes":
        """As measured on black images."""
        example = next(network.parameters(), torch.empty(0))
        training = network.training
        with torch.no_grad():
            output = network.eval()(torch.zeros(2, *task.shape, dtype=example.dtype, device=example.device))
        network.train(training)
        return cls(name, tuple(stage.shape[1:] for stage in output.stages), output.embedding.shape[-1])

    def stage(self, number: int, key: str) -> torch.Size:
        """The shape of stage ``number`` (-1: the last).

        Raises:
            ValueError: the network has no such stage.
        """
        count = len(self.stages)
        require(
            -count <= number < count, key, f"must be a stage of the {self.name}, which has {count} (0..{count - 1}, -1 is the last)", number
        )
        return self.stages[number]


@dataclass(frozen=True)
class Pair:
    """The two networks that a method brings together; no teacher where the method needs none.

    Args:
        task: what is learnt.
        student: a workspace.
        teacher: likewise; its modules beside the network are ``teacher_method``.
        teacher_method: what the teacher was trained with, where that is kept (HSAKD's branches).
        fresh: another network of the student's kind, freshly initialised, with other arguments if given.
    """

    task: Task
    student: Classifier
    fresh: Callable[..., Classifier]
    teacher: nn.Module | None = None
    teacher_method: nn.Module | None = None

    @property
    def sizes(self) -> tuple[Sizes, Sizes]:
        """Of student and teacher."""
        assert self.teacher is not None, "the method has a teacher"
        return Sizes.of(self.student, self.task, "student"), Sizes.of(self.teacher, self.task, "teacher")


def same_number(pair: Pair, otherwise: str = "") -> None:
    """Refuse networks that have not the same number of stages; ``otherwise`` is what else could be done."""
    student, teacher = (len(sizes.stages) for sizes in pair.sizes)
    rule = f"must be a network of as many stages as the teacher, {teacher}, for a method that compares all of them"
    rule += f" ({otherwise})" if otherwise else ""
    require(student == teacher > 0, "student", rule, student)


def maps(pair: Pair) -> None:
    """Refuse networks whose stages give no maps."""
    for sizes in pair.sizes:
        flat = [tuple(stage) for stage in sizes.stages if len(stage) != 3]
        require(not flat, sizes.name, "must be a network whose stages give maps (channels, height, width)", flat)
