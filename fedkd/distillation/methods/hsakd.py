"""HSAKD: distillation of class and rotation predictions at every stage. Offline student, its teacher, and the online version."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkd.distillation.methods.base import (
    Distiller,
    StudentModule,
    TeacherStudent,
    check_equal_stages,
    check_temperature,
    check_weight,
    classification_loss,
)
from fedkd.errors import ConfigError, require
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.kl import kl_divergence
from fedkd.models.base import Classifier
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, submodule_tensors
from fedkd.types import Input, Metrics, Output, Tensors

NUM_ROTATIONS = 4
"""Rotations by 0, 90, 180 and 270 degrees."""


def rotations(x: Tensor) -> Tensor:  # [B, channels, H, H] -> [4B, channels, H, H]
    """Every image rotated by 0, 90, 180 and 270 degrees, counterclockwise. Image b rotated k times has index ``4b + k``.

    Raises:
        ValueError: Images are not square. A rotation would change their shape.
    """
    height, width = x.shape[-2:]
    require(height == width, "rotations", "must be of square images", f"{height}x{width}")
    return torch.stack([x.rot90(k, (-2, -1)) for k in range(NUM_ROTATIONS)], 1).flatten(0, 1)


def joint_labels(y: Tensor) -> Tensor:  # [B] -> [4B]
    """``4 y_b + k``, in 0..4C-1, for the images of :func:`rotations`."""
    return (NUM_ROTATIONS * y[:, None] + torch.arange(NUM_ROTATIONS, device=y.device)).flatten()


def class_logits(joint: Tensor) -> Tensor:  # [..., 4C] -> [..., C]
    """The sum of each class's four logits: class logits from the logits of class and rotation."""
    return joint.unflatten(-1, (-1, NUM_ROTATIONS)).sum(-1)


class Branches(nn.Module):
    """A classifier of class and rotation after every stage. Each is a copy of the network's remaining stages with new weights. After the
    last stage one more stage is added.

    Args:
        make: Makes a network with new weights. Each branch takes its parts from one.
    """

    def __init__(self, make: Callable[[], Classifier]) -> None:
        super().__init__()
        number = len(make().stages)
        self.branches = nn.ModuleList(self.branch(make(), after) for after in range(number))

    @staticmethod
    def branch(network: Classifier, after: int) -> nn.Module:
        """The modules that follow stage ``after``."""
        rest = list(network.stages)[after + 1 :] or [network.extra_stage()]
        return nn.Sequential(*rest, network.embed, nn.Linear(network.embedding_size, NUM_ROTATIONS * network.task.num_classes))

    def forward(self, stages: Sequence[Tensor], detach: bool) -> list[Tensor]:  # -> L times [4B, 4C]
        """Logits of class and rotation, index ``4 class + rotation``, for each stage's map."""
        return [branch(stage.detach() if detach else stage) for branch, stage in zip(self.branches, stages, strict=True)]


def check_extra_stage(pair: TeacherStudent) -> None:
    """Reject networks without an additional stage for the last branch, and images that are not square."""
    height, width = pair.task.shape[-2:]
    require(height == width, "data", "must have square images, as they are rotated by 90 degrees (set data.size)", f"{height}x{width}")
    try:
        pair.student.extra_stage()
    except ValueError as error:
        raise ConfigError(str(error).replace("model", "student", 1)) from error


def without_rotations(output: Output) -> Output:
    """The outputs for the images that are not rotated: every fourth one."""
    return Output(output.logits[::NUM_ROTATIONS], output.embedding[::NUM_ROTATIONS])


def rotated_images(batch: Batch) -> Tensor:  # [4B, ...]
    """A batch's images in all four rotations."""
    assert batch.x is not None, "the student is trained on images"
    return rotations(batch.x).contiguous(memory_format=torch.channels_last)


@dataclass(kw_only=True)
class HSAKD(Distiller):
    """Loss: ``ce CE(z_s, y) + joint sum_l KL_T(q_t^l || q_s^l) + kd KL_T(z_t || z_s)``.

    q^l are the logits of class and rotation of the branch after stage l. The cross-entropy sees the images that are not rotated, both
    divergences all four rotations. ``KL_T(a || b) = T^2 KL(softmax(a / T) || softmax(b / T))``, mean over images. The student gets no
    labels of rotation. ``teaching`` trains the teacher's branches before: on the frozen network (HSAKD), or together with it (HSAKD*,
    ``distiller=hsakd_joint``).

    Source:
        Yang, An, Cai, Xu: Hierarchical self-supervised augmented knowledge distillation, IJCAI 2021.
        Public code: winycg/HSAKD @ 28c8dc2.

    Args:
        joint: Weight of the branches, >= 0.
        kd: Weight of the networks' own logits, over all rotations, >= 0.
        temperature: Temperature T, > 0.
        detach: Do not train the student's stages through the branches. The public code trains them.
        teaching: Overrides of the training that gives the teacher its branches.

    Deviations:
        - From the public code: the accuracy is that of the last epoch. The public code reports the best epoch on the test set.
        - From the public code: Nesterov's momentum is off as shipped. ``+optimizer.nesterov=true`` switches it on.
    """

    inputs: ClassVar[tuple[Input, ...]] = ("image",)
    needs_teacher: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "joint"

    joint: float
    kd: float
    temperature: float
    detach: bool
    teaching: Sequence[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self.joint, "joint")
        check_weight(self.kd, "kd")
        check_temperature(self.temperature)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """Both networks need equally many stages, and the teacher needs branches."""
        check_equal_stages(pair)
        if not isinstance(pair.teacher_method, Branches):
            raise ConfigError(
                "teaching must give the teacher branches (teaching=[distiller=hsakd_teacher,student_init=teacher]), "
                f"got {list(self.teaching)}"
            )
        check_extra_stage(pair)

    def teacher_training(self) -> Sequence[str]:
        """The training of the teacher's branches."""
        return self.teaching

    def modules(self, pair: TeacherStudent) -> nn.Module:
        """The student's branches."""
        return Branches(pair.fresh)

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labeled: bool) -> tuple[Tensor, Metrics]:
        """``ce``, ``joint`` and ``kd``, and their sum."""
        assert teacher is not None, "the method has a teacher"
        x = rotated_images(batch)
        student_output, teacher_output = model.submodule("student")(x), teacher.submodule("student")(x)
        student_branches = model.submodule("method")(student_output.stages, self.detach)
        teacher_branches = teacher.submodule("method")(teacher_output.stages, True)
        divergences = [kl_divergence(t, s, self.temperature).mean() for t, s in zip(teacher_branches, student_branches, strict=True)]
        terms = {
            "ce": self.ce * classification_loss(without_rotations(student_output), without_rotations(teacher_output), batch.y, labeled),
            "joint": self.joint * torch.stack(divergences).sum(),
            "kd": self.kd * kl_divergence(teacher_output.logits, student_output.logits, self.temperature).mean(),
        }
        return torch.stack(list(terms.values())).sum(), terms


class Peer(nn.Module):
    """A second network of the student's kind, and the branches of both."""

    def __init__(self, pair: TeacherStudent) -> None:
        super().__init__()
        self.network, self.branches, self.own = pair.fresh(), Branches(pair.fresh), Branches(pair.fresh)


@dataclass(kw_only=True)
class HSAKDOnline(Distiller):
    """Loss: ``sum_n (ce CE(z_n, y) + self_supervised sum_l CE(q_n^l, 4 y + rotation) + kd KL_T(z_m || z_n) + joint sum_l KL_T(q_m^l ||
    q_n^l))``.

    n runs over two networks that train from scratch, and m is the peer of n. The peer's logits carry no gradient. The branches'
    cross-entropy trains the networks too. Both networks are saved, as ``student`` and ``peer``.

    Source:
        Yang, An, Cai, Xu: Hierarchical self-supervised augmented knowledge distillation, IJCAI 2021, the online version.
        Public code: winycg/HSAKD @ 28c8dc2.

    Args:
        self_supervised: Weight of the branches' cross-entropy, >= 0.
        joint: Weight of the branches' divergence, >= 0.
        kd: Weight of the networks' divergence, over all rotations, >= 0.
        temperature: Temperature T, > 0.

    Deviations:
        - From the public code: the accuracy is that of the last epoch, and Nesterov's momentum is off as shipped
          (``+optimizer.nesterov=true``).
        - Images need labels.
    """

    inputs: ClassVar[tuple[Input, ...]] = ("image",)
    needs_labels: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "joint"

    self_supervised: float
    joint: float
    kd: float
    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("self_supervised", "joint", "kd"):
            check_weight(getattr(self, name), name)
        check_temperature(self.temperature)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """The network must have an additional stage for the last branch, and images must be square."""
        check_extra_stage(pair)

    def modules(self, pair: TeacherStudent) -> nn.Module:
        """The peer, and the branches of both networks."""
        return Peer(pair)

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labeled: bool) -> tuple[Tensor, Metrics]:
        """``ce``, ``self_supervised``, ``kd`` and ``joint``, and their sum."""
        assert labeled, "rotations of classes need labels"
        x, labels, method = rotated_images(batch), joint_labels(batch.y), model.submodule("method")
        outputs = [model.submodule("student")(x), method.submodule("network")(x)]
        branches = [method.submodule(name)(output.stages, False) for name, output in zip(("own", "branches"), outputs)]
        logits = [[output.logits, *joint_logits] for output, joint_logits in zip(outputs, branches)]
        divergences = [
            [kl_divergence(t.detach(), s, self.temperature).mean() for t, s in zip(peer, network)]
            for network, peer in (logits, logits[::-1])
        ]
        losses = [classification_loss(without_rotations(output), None, batch.y, True) for output in outputs]
        joint_losses = [cross_entropy(joint_logits, labels).mean() for of_network in branches for joint_logits in of_network]
        terms = {
            "ce": self.ce * (losses[0] + losses[1]),
            "self_supervised": self.self_supervised * torch.stack(joint_losses).sum(),
            "kd": self.kd * (divergences[0][0] + divergences[1][0]),
            "joint": self.joint * torch.stack([term for of_network in divergences for term in of_network[1:]]).sum(),
        }
        return torch.stack(list(terms.values())).sum(), terms

    def networks(self, learner: StudentModule, tensors: Tensors) -> dict[str, tuple[nn.Module, Tensors]]:
        """``student`` and ``peer``."""
        return {**super().networks(learner, tensors), "peer": (learner.method.network, submodule_tensors(tensors, "method.network"))}


@dataclass(kw_only=True)
class HSAKDTeacher(Distiller):
    """Loss: ``ce CE(z, y) + joint sum_l CE(q^l, 4 y + rotation)``.

    q^l are the logits of class and rotation of the branch after stage l, for four rotations of each image. With ``frozen`` the network
    stays in eval mode and its branches alone are trained. Such a teacher starts from a network trained with labels (HSAKD). Otherwise all
    of it is trained (HSAKD*). The branches are kept for the student. On images without labels y are the frozen network's own predictions.

    Source:
        Yang, An, Cai, Xu: Hierarchical self-supervised augmented knowledge distillation, IJCAI 2021, training of the teacher.
        Public code: winycg/HSAKD @ 28c8dc2.

    Args:
        joint: Weight of the branches, >= 0.
        frozen: Train the branches alone.

    Deviations:
        - From the public code: the branches of a frozen network have the student's schedule. The public code trains them for 100 epochs
          with decays at 30, 60 and 90.
    """

    inputs: ClassVar[tuple[Input, ...]] = ("image",)
    tuned_weight: ClassVar[str | None] = "joint"

    joint: float
    frozen: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self.joint, "joint")

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]  # a class variable of other methods
        """Labels are needed unless the network is frozen and predicts them itself."""
        return not self.frozen

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """The network must have an additional stage for the last branch, and images must be square."""
        check_extra_stage(pair)

    def modules(self, pair: TeacherStudent) -> nn.Module:
        """The network's branches."""
        return Branches(pair.fresh)

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labeled: bool) -> tuple[Tensor, Metrics]:
        """``ce`` and ``joint``, and their sum."""
        assert labeled or self.frozen, "rotations of classes need labels"
        network = model.submodule("student")
        output = network.frozen()(rotated_images(batch)) if self.frozen else network(rotated_images(batch))
        y = batch.y if labeled else without_rotations(output).logits.argmax(-1)
        joint_logits, labels = model.submodule("method")(output.stages, self.frozen), joint_labels(y)
        terms = {
            "ce": self.ce * classification_loss(without_rotations(output), None, y, True),
            "joint": self.joint * torch.stack([cross_entropy(logits, labels).mean() for logits in joint_logits]).sum(),
        }
        return torch.stack(list(terms.values())).sum(), terms
