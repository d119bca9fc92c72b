"""The contract of a distillation method: the two networks, what the student minimizes, and the modules that the method adds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedkd.errors import require
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.models.base import Classifier
from fedkd.seed import Seed
from fedkd.tensor_ops import wide
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, submodule_tensors
from fedkd.types import Metrics, Output, Task, Tensors


class StudentModule(nn.Module):
    """All that trains in a distillation: the student, and the method's own modules, which are dropped at the end."""

    def __init__(self, student: nn.Module, method: nn.Module | None = None) -> None:
        super().__init__()
        self.student, self.method = student, method or nn.Module()

    def forward(self, x: Tensor) -> Output:
        return self.student(x)


@dataclass(frozen=True)
class Steps:
    """The steps of one epoch, of which a method may draw or schedule something.

    Args:
        number: S.
        batch_size: B.
        epoch: from 0.
        epochs: of the whole training.
        seed: this epoch's and method's.
    """

    number: int
    batch_size: int
    epoch: int
    epochs: int
    seed: Seed


@dataclass(frozen=True)
class StepInput:
    """What a method's terms may look at.

    Args:
        student: what the student says of the batch.
        teacher: what the teacher says of it, without gradient.
        y: labels [B]; the teacher's answer where there are none.
        method: the method's modules, bound.
        batch: the images, and this step's draws.
    """

    student: Output
    teacher: Output
    y: Tensor
    method: FunctionalModel
    batch: Batch


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
            ConfigError: the network has no such stage.
        """
        count = len(self.stages)
        require(
            -count <= number < count, key, f"must be a stage of the {self.name}, which has {count} (0..{count - 1}, -1 is the last)", number
        )
        return self.stages[number]


@dataclass(frozen=True)
class TeacherStudent:
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


@dataclass(kw_only=True)
class Distiller:
    """``ce CE(z, y)``: a student alone; methods add terms of their own.

    On images without labels CE is taken against the teacher's probabilities: ``-sum_c p_c ln softmax(z)_c``.

    Args:
        ce: >= 0, weight of the cross-entropy.
    """

    taught: ClassVar[bool] = False
    """A teacher is needed."""
    needs_labels: ClassVar[bool] = False
    """Images without labels will not do."""
    scale: ClassVar[str | None] = None
    """The parameter that weighs what the method adds, which is tuned first; None where it adds nothing."""

    ce: float

    def __post_init__(self) -> None:
        require(self.ce >= 0, "ce", "must be >= 0 (0 leaves labels out)", self.ce)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """Refuse networks and batches that the method cannot work with.

        Raises:
            ConfigError: naming the key, the rule and the value.
        """

    def preparation(self) -> Sequence[str]:
        """How the teacher is trained beyond its own training with labels: overrides of ``simulations.distill``; none if empty."""
        return ()

    def modules(self, pair: TeacherStudent) -> nn.Module | None:
        """The method's own modules, freshly initialised."""
        return None

    def learner(self, pair: TeacherStudent) -> StudentModule:
        """All that trains."""
        return StudentModule(pair.student, self.modules(pair))

    def lr_of(self, name: str, epoch: int) -> float:
        """What the learning rate of a parameter of the learner is multiplied by in an epoch, from 0."""
        return 1.0

    def forgets(self, epoch: int) -> bool:
        """The optimizer begins this epoch, from 0, without what it remembers."""
        return False

    def draw(self, steps: Steps) -> Tensors:
        """What is random or scheduled, for all steps at once: tensors [S, ...]."""
        return {}

    def terms(self, seen: StepInput) -> Metrics:
        """Scalars by name, weighted already, that are added to the cross-entropy."""
        return {}

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labelled: bool) -> tuple[Tensor, Metrics]:
        """The sum of all terms, and each of them."""
        student = model.within("student")(batch.x)
        said = None if teacher is None else teacher.within("student")(batch.x)
        terms = {"ce": self.ce * classification(student, said, batch.y, labelled)}
        if said is not None:
            y = batch.y if labelled else said.logits.argmax(-1)
            terms |= self.terms(StepInput(student, said, y, model.within("method"), batch))
        return torch.stack(list(terms.values())).sum(), terms

    def networks(self, learner: StudentModule, tensors: Tensors) -> dict[str, tuple[nn.Module, Tensors]]:
        """The networks that leave the house, without the method's modules: modules and their tensors by name, ``student`` first."""
        return {"student": (learner.student, submodule_tensors(tensors, "student"))}

    def changes(self, learner: StudentModule, name: str) -> dict[str, Any]:
        """In what a network that leaves the house differs from the student's configuration."""
        return {}


def classification(student: Output, teacher: Output | None, y: Tensor, labelled: bool) -> Tensor:
    """The mean cross-entropy with labels, or with the teacher's probabilities where there are none."""
    if labelled:
        return cross_entropy(student.logits, y).mean()
    assert teacher is not None, "images without labels have a teacher"
    return -(wide(teacher.logits).softmax(-1) * wide(student.logits).log_softmax(-1)).sum(-1).mean()


def weight(value: float, key: str = "weight") -> None:
    """Refuse a negative weight."""
    require(value >= 0, key, "must be >= 0 (0 switches the term off)", value)


def temperature(value: float) -> None:
    """Refuse a temperature that is not positive."""
    require(value > 0, "temperature", "must be > 0", value)


def same_number(pair: TeacherStudent, otherwise: str = "") -> None:
    """Refuse networks that have not the same number of stages; ``otherwise`` is what else could be done."""
    student, teacher = (len(sizes.stages) for sizes in pair.sizes)
    rule = f"must be a network of as many stages as the teacher, {teacher}, for a method that compares all of them"
    rule += f" ({otherwise})" if otherwise else ""
    require(student == teacher > 0, "student", rule, student)


def maps(pair: TeacherStudent) -> None:
    """Refuse networks whose stages give no maps."""
    for sizes in pair.sizes:
        flat = [tuple(stage) for stage in sizes.stages if len(stage) != 3]
        require(not flat, sizes.name, "must be a network whose stages give maps (channels, height, width)", flat)
