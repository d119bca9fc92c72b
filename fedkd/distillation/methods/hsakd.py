"""Hierarchical self-supervised augmented knowledge distillation (Yang et al., IJCAI 2021): offline, joint, online, and its teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkd.distillation.methods.base import Distiller, StudentModule, TeacherStudent, classification, same_number, temperature, weight
from fedkd.errors import ConfigError, require
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.kl import kl_divergence
from fedkd.models.base import Classifier
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, submodule_tensors
from fedkd.types import Metrics, Output, Tensors

QUARTERS = 4


def rotations(x: Tensor) -> Tensor:  # [B, channels, H, H] -> [4B, channels, H, H]
    """Every image turned by 0, 90, 180, 270 degrees, counter-clockwise; image b turned k times is at ``4b + k``.

    Raises:
        ConfigError: images are not square: a quarter turn would change their shape.
    """
    height, width = x.shape[-2:]
    require(height == width, "rotations", "must be of square images", f"{height}x{width}")
    return torch.stack([x.rot90(k, (-2, -1)) for k in range(QUARTERS)], 1).flatten(0, 1)


def joint_labels(y: Tensor) -> Tensor:  # [B] -> [4B]
    """``4 y_b + k``, in 0..4C-1, of :func:`rotations`."""
    return (QUARTERS * y[:, None] + torch.arange(QUARTERS, device=y.device)).flatten()


def class_logits(joint: Tensor) -> Tensor:  # [..., 4C] -> [..., C]
    """The sum of each class's four logits: what a head of the joint task says of classes alone."""
    return joint.unflatten(-1, (-1, QUARTERS)).sum(-1)


ROTATIONS = 4


class Branches(nn.Module):
    """A classifier of class and rotation after every stage: the network's remaining stages anew, one more stage after the last.

    Args:
        make: a fresh network, of which each branch takes its parts.
    """

    def __init__(self, make: Callable[[], Classifier]) -> None:
        super().__init__()
        number = len(make().stages)
        self.branches = nn.ModuleList(self.branch(make(), after) for after in range(number))

    @staticmethod
    def branch(network: Classifier, after: int) -> nn.Module:
        """What follows stage ``after``."""
        rest = list(network.stages)[after + 1 :] or [network.extra_stage()]
        return nn.Sequential(*rest, network.embed, nn.Linear(network.embedding_size, ROTATIONS * network.task.num_classes))

    def forward(self, stages: Sequence[Tensor], detach: bool) -> list[Tensor]:  # -> L times [4B, 4C]
        """Logits of class and rotation, ``4 class + rotation``, of each stage's map."""
        return [branch(stage.detach() if detach else stage) for branch, stage in zip(self.branches, stages, strict=True)]


def extensible(pair: TeacherStudent) -> None:
    """Refuse a network that has no stage more to branch to, and images that cannot be turned."""
    height, width = pair.task.shape[-2:]
    require(height == width, "data", "must have square images: they are turned by quarters (data.size)", f"{height}x{width}")
    try:
        pair.student.extra_stage()
    except ValueError as error:
        raise ConfigError(str(error).replace("model", "student", 1)) from error


def upright(output: Output) -> Output:
    """What was said of the images that are not turned: every fourth."""
    return Output(output.logits[::ROTATIONS], output.embedding[::ROTATIONS])


def turned(batch: Batch) -> Tensor:  # [4B, ...]
    """A batch's images in all four rotations."""
    assert batch.x is not None, "images are distilled on"
    return rotations(batch.x).contiguous(memory_format=torch.channels_last)


@dataclass(kw_only=True)
class HSAKD(Distiller):
    """``ce CE(z_s, y) + joint sum_l KL_T(q_t^l || q_s^l) + kd KL_T(p_t || p_s)``, q of class and rotation at stage l, all but CE over four rotations.

    ``KL_T(a || b) = T^2 KL(softmax(a / T) || softmax(b / T))``, the mean over images. Yang, An, Cai, Xu: Hierarchical self-supervised
    augmented knowledge distillation, IJCAI 2021, and its public code, where a student gets no labels of rotation. ``teaching`` says how
    the teacher's branches are trained: on the frozen network (HSAKD), or with it (HSAKD*, ``hsakd_joint``).

    Deviations: the accuracy is that of the last epoch, not the best on the test set; Nesterov's momentum is ``+optimizer.nesterov=true``.

    Args:
        joint: >= 0, weight of the branches.
        kd: >= 0, weight of the networks' own answers, over all rotations.
        temperature: > 0, T.
        detach: the branches do not train the student's stages (public code: they do).
        teaching: overrides of the training that gives the teacher its branches.
    """

    taught: ClassVar[bool] = True
    scale: ClassVar[str | None] = "joint"

    joint: float
    kd: float
    temperature: float
    detach: bool
    teaching: Sequence[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        weight(self.joint, "joint")
        weight(self.kd, "kd")
        temperature(self.temperature)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        same_number(pair)
        if not isinstance(pair.teacher_method, Branches):
            raise ConfigError(
                f"teaching must give the teacher branches (teaching=[distiller=hsakd_teacher,init=teacher]), got {list(self.teaching)}"
            )
        extensible(pair)

    def preparation(self) -> Sequence[str]:
        return self.teaching

    def modules(self, pair: TeacherStudent) -> nn.Module:
        return Branches(pair.fresh)

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labelled: bool) -> tuple[Tensor, Metrics]:
        assert teacher is not None, "the method has a teacher"
        x = turned(batch)
        student, said = model.within("student")(x), teacher.within("student")(x)
        learnt, known = model.within("method")(student.stages, self.detach), teacher.within("method")(said.stages, True)
        apart = [kl_divergence(t, s, self.temperature).mean() for t, s in zip(known, learnt, strict=True)]
        terms = {
            "ce": self.ce * classification(upright(student), upright(said), batch.y, labelled),
            "joint": self.joint * torch.stack(apart).sum(),
            "kd": self.kd * kl_divergence(said.logits, student.logits, self.temperature).mean(),
        }
        return torch.stack(list(terms.values())).sum(), terms


class Peer(nn.Module):
    """A second network of the student's kind, and the branches of both."""

    def __init__(self, pair: TeacherStudent) -> None:
        super().__init__()
        self.network, self.branches, self.own = pair.fresh(), Branches(pair.fresh), Branches(pair.fresh)


@dataclass(kw_only=True)
class HSAKDOnline(Distiller):
    """``sum_n (ce CE(p_n, y) + self_supervised sum_l CE(q_n^l, 4 y + rotation) + kd KL_T(p_m || p_n) + joint sum_l KL_T(q_m^l || q_n^l))``, m the peer of n.

    The peer's answers carry no gradient. Yang, An, Cai, Xu, IJCAI 2021: the online version, in which the branches' cross-entropy trains
    the networks too. Both networks leave the house, as ``student`` and ``peer``.

    Deviations: Nesterov's momentum is ``+optimizer.nesterov=true``. Images need labels.

    Args:
        self_supervised: >= 0, weight of the branches' cross-entropy.
        joint: >= 0, weight of the branches' divergence.
        kd: >= 0, weight of the networks' divergence, over all rotations.
        temperature: > 0, T.
    """

    needs_labels: ClassVar[bool] = True
    scale: ClassVar[str | None] = "joint"

    self_supervised: float
    joint: float
    kd: float
    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("self_supervised", "joint", "kd"):
            weight(getattr(self, name), name)
        temperature(self.temperature)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        extensible(pair)

    def modules(self, pair: TeacherStudent) -> nn.Module:
        return Peer(pair)

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labelled: bool) -> tuple[Tensor, Metrics]:
        assert labelled, "rotations of classes need labels"
        x, labels, method = turned(batch), joint_labels(batch.y), model.within("method")
        outputs = [model.within("student")(x), method.within("network")(x)]
        branches = [method.within(name)(output.stages, False) for name, output in zip(("own", "branches"), outputs)]
        said = [[output.logits, *q] for output, q in zip(outputs, branches)]
        divergences = [
            [kl_divergence(t.detach(), s, self.temperature).mean() for t, s in zip(theirs, mine)] for mine, theirs in (said, said[::-1])
        ]
        terms = {
            "ce": self.ce * sum(classification(upright(output), None, batch.y, True) for output in outputs),
            "self_supervised": self.self_supervised
            * torch.stack([cross_entropy(q, labels).mean() for each in branches for q in each]).sum(),
            "kd": self.kd * sum(each[0] for each in divergences),
            "joint": self.joint * torch.stack([one for each in divergences for one in each[1:]]).sum(),
        }
        return torch.stack(list(terms.values())).sum(), terms

    def networks(self, learner: StudentModule, tensors: Tensors) -> dict[str, tuple[nn.Module, Tensors]]:
        return {**super().networks(learner, tensors), "peer": (learner.method.network, submodule_tensors(tensors, "method.network"))}


@dataclass(kw_only=True)
class HSAKDTeacher(Distiller):
    """``ce CE(z, y) + joint sum_l CE(q^l, 4 y + rotation)``, q^l of class and rotation at stage l, over four rotations of each image.

    Yang, An, Cai, Xu, IJCAI 2021. With ``frozen`` the network stays as it is, in eval mode, and its branches alone are trained (HSAKD's
    teacher, which begins from a network trained with labels); without, all of it is (HSAKD*). The branches are kept for the student.
    On images without labels y is the frozen network's own answer.

    Deviations: the student's schedule, not one of 100 epochs for the frozen network's branches (``teaching=[..., epochs=100,
    'milestones=[0.3,0.6,0.9]']``).

    Args:
        joint: >= 0, weight of the branches.
        frozen: the network is not trained.
    """

    scale: ClassVar[str | None] = "joint"

    joint: float
    frozen: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        weight(self.joint, "joint")

    @property
    def needs_labels(self) -> bool:
        """Images without labels will do where the network answers for itself."""
        return not self.frozen

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        extensible(pair)

    def modules(self, pair: TeacherStudent) -> nn.Module:
        return Branches(pair.fresh)

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labelled: bool) -> tuple[Tensor, Metrics]:
        assert labelled or self.frozen, "rotations of classes need labels"
        network = model.within("student")
        output = network.asleep()(turned(batch)) if self.frozen else network(turned(batch))
        y = batch.y if labelled else upright(output).logits.argmax(-1)
        q, labels = model.within("method")(output.stages, self.frozen), joint_labels(y)
        terms = {
            "ce": self.ce * classification(upright(output), None, y, True),
            "joint": self.joint * torch.stack([cross_entropy(one, labels).mean() for one in q]).sum(),
        }
        return torch.stack(list(terms.values())).sum(), terms
