"""Base classes of the distillation methods: the loss of the student, and the networks that a method combines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedkd.errors import require
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.models.base import Classifier
from fedkd.seed import Seed
from fedkd.tensor_ops import at_least_float32
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, submodule_tensors
from fedkd.types import INPUTS, Input, Metrics, Output, Task, Tensors


class StudentModule(nn.Module):
    """All modules that are trained: the student and the method's own modules. The latter are dropped after training."""

    def __init__(self, student: nn.Module, method: nn.Module | None = None) -> None:
        super().__init__()
        self.student: nn.Module = student
        self.method: Any = method or nn.Module()  # each method knows the type of its modules

    def forward(self, x: Tensor) -> Output:
        """The output of the student."""
        return self.student(x)


@dataclass(frozen=True)
class EpochSteps:
    """The steps of one epoch, for which a method may draw random numbers or set a schedule.

    Args:
        number: Number of steps S.
        batch_size: Images per step B.
        epoch: Number of the epoch, from 0.
        epochs: Number of epochs of the whole training.
        seed: Seed of this epoch and method.
    """

    number: int
    batch_size: int
    epoch: int
    epochs: int
    seed: Seed


@dataclass(frozen=True)
class StepInput:
    """The tensors that a method's terms may use.

    Args:
        student: Output of the student for the batch.
        teacher: Output of the teacher for the batch, without gradient.
        y: Labels [B]. Without labels, the teacher's predictions.
        method: The method's modules with the current tensors.
        batch: The images, and this step's draws.
    """

    student: Output
    teacher: Output
    y: Tensor
    method: FunctionalModel
    batch: Batch


@dataclass(frozen=True)
class Sizes:
    """The shapes that a network returns for one image: those of its stages' feature maps, and the size of its embedding."""

    name: str
    stages: tuple[torch.Size, ...]
    embedding: int

    @classmethod
    def of(cls, network: nn.Module, task: Task, name: str) -> "Sizes":
        """The sizes of ``network``, measured on black images."""
        example = next(network.parameters(), torch.empty(0))
        was_training = network.training
        with torch.no_grad():
            output = network.eval()(task.inputs(2, example.dtype, example.device))
        network.train(was_training)
        return cls(name, tuple(stage.shape[1:] for stage in output.stages), output.embedding.shape[-1])

    def stage(self, number: int, key: str) -> torch.Size:
        """The shape of stage ``number``, where -1 is the last.

        Raises:
            ValueError: The network has no such stage.
        """
        count = len(self.stages)
        require(
            -count <= number < count, key, f"must be a stage of the {self.name}, which has {count} (0..{count - 1}, -1 is the last)", number
        )
        return self.stages[number]


@dataclass(frozen=True)
class TeacherStudent:
    """The two networks that a method combines. ``teacher`` is None where the method needs none.

    Args:
        task: The classification task.
        student: The student's module. Its tensors are overwritten before use.
        teacher: The teacher's module, likewise.
        teacher_method: Modules that the teacher was trained with, where they are kept (HSAKD's branches).
        fresh: Makes another network of the student's kind with new weights, with other arguments if given.
    """

    task: Task
    student: Classifier
    fresh: Callable[..., Classifier]
    teacher: nn.Module | None = None
    teacher_method: nn.Module | None = None

    @property
    def sizes(self) -> tuple[Sizes, Sizes]:
        """The sizes of student and teacher."""
        assert self.teacher is not None, "the method has a teacher"
        return Sizes.of(self.student, self.task, "student"), Sizes.of(self.teacher, self.task, "teacher")


@dataclass(kw_only=True)
class Distiller:
    """Loss: ``ce CE(z, y)``.

    The base class trains a student without a teacher. Methods add terms of their own. On images without labels the cross-entropy is
    ``-sum_c p_c ln softmax(z)_c`` with the teacher's probabilities p.

    Source:
        None: this is the baseline of all methods.

    Args:
        ce: Weight of the cross-entropy, >= 0. 0 leaves the labels out.
    """

    needs_teacher: ClassVar[bool] = False
    """Whether the method needs a teacher."""

    inputs: ClassVar[tuple[Input, ...]] = INPUTS
    """The kinds of inputs on which the method trains, see :class:`fedkd.types.Task`."""

    needs_labels: ClassVar[bool] = False
    """Whether every image must have a label."""

    tuned_weight: ClassVar[str | None] = None
    """Name of the weight of the method's own terms, which ``fedkd tune --distiller`` tunes. None if there is no such weight."""

    ce: float

    def __post_init__(self) -> None:
        require(self.ce >= 0, "ce", "must be >= 0 (0 leaves labels out)", self.ce)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """Reject networks and batches that the method cannot use.

        Raises:
            ValueError: The message names the key, the rule and the value.
        """

    def teacher_training(self) -> Sequence[str]:
        """Overrides of ``fedkd distill`` that train the teacher further before the student. Empty for none."""
        return ()

    def modules(self, pair: TeacherStudent) -> nn.Module | None:
        """The method's own modules with new weights. None if there are none."""
        return None

    def learner(self, pair: TeacherStudent) -> StudentModule:
        """The student together with the method's modules."""
        return StudentModule(pair.student, self.modules(pair))

    def lr_factor_of(self, name: str, epoch: int) -> float:
        """Factor of the learning rate of one parameter in an epoch, counted from 0."""
        return 1.0

    def resets_optimizer(self, epoch: int) -> bool:
        """Whether the optimizer starts this epoch, counted from 0, with a new state."""
        return False

    def draw(self, steps: EpochSteps) -> Tensors:
        """Random or scheduled tensors [S, ...] for all steps of an epoch."""
        return {}

    def terms(self, step: StepInput) -> Metrics:
        """Scalars by name that are added to the cross-entropy. Each has its weight already."""
        return {}

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labeled: bool) -> tuple[Tensor, Metrics]:
        """The sum of all terms, and each term by name.

        Args:
            model: the learner with its current tensors.
            teacher: the teacher with its tensors. None for methods without a teacher.
            batch: the augmented images and their labels.
            labeled: whether the labels may be used.
        """
        output = model.submodule("student")(batch.x)
        teacher_output = None if teacher is None else teacher.submodule("student")(batch.x)
        terms = {"ce": self.ce * classification_loss(output, teacher_output, batch.y, labeled)}
        if teacher_output is not None:
            y = batch.y if labeled else teacher_output.logits.argmax(-1)
            terms |= self.terms(StepInput(output, teacher_output, y, model.submodule("method"), batch))
        return torch.stack(list(terms.values())).sum(), terms

    def networks(self, learner: StudentModule, tensors: Tensors) -> dict[str, tuple[nn.Module, Tensors]]:
        """The networks that are saved, without the method's modules: modules and tensors by name, ``student`` first."""
        return {"student": (learner.student, submodule_tensors(tensors, "student"))}

    def config_changes(self, learner: StudentModule, name: str) -> dict[str, Any]:
        """Keys in which a saved network differs from the student's configuration."""
        return {}


def classification_loss(student: Output, teacher: Output | None, y: Tensor, labeled: bool) -> Tensor:
    """The mean cross-entropy with the labels, or with the teacher's probabilities where there are none."""
    if labeled:
        return cross_entropy(student.logits, y).mean()
    assert teacher is not None, "images without labels have a teacher"
    return -(at_least_float32(teacher.logits).softmax(-1) * at_least_float32(student.logits).log_softmax(-1)).sum(-1).mean()


def check_weight(value: float, key: str = "weight") -> None:
    """Reject a negative weight."""
    require(value >= 0, key, "must be >= 0 (0 switches the term off)", value)


def check_temperature(value: float) -> None:
    """Reject a temperature that is not positive."""
    require(value > 0, "temperature", "must be > 0", value)


def check_equal_stages(pair: TeacherStudent, otherwise: str = "") -> None:
    """Reject networks with different numbers of stages. ``otherwise`` names an alternative for the message."""
    student, teacher = (len(sizes.stages) for sizes in pair.sizes)
    rule = f"must be a network of as many stages as the teacher, {teacher}, for a method that compares all of them"
    rule += f" ({otherwise})" if otherwise else ""
    require(student == teacher > 0, "student", rule, student)


def check_feature_maps(pair: TeacherStudent) -> None:
    """Reject networks whose stages do not return feature maps."""
    for sizes in pair.sizes:
        without_maps = [tuple(stage) for stage in sizes.stages if len(stage) != 3]
        require(not without_maps, sizes.name, "must be a network whose stages are feature maps (channels, height, width)", without_maps)
