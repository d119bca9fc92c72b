"""HSAKD: distillation of class and rotation predictions at every stage. Offline student, its teacher, and the online version."""

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
    """Every image rotated by 0, 90, 180 and 270 degrees, counterclockwise. Image b rotated k times has index ``4b + k``.

    Raises:
        ValueError: Images are not square. A rotation would change their shape.
    """
    height, width = x.shape[-2:]
    require(height == width, "rotations", "must be of square images", f"{height}x{width}")
    return torch.stack([x.rot90(k, (-2, -1)) for k in range(QUARTERS)], 1).flatten(0, 1)


def joint_labels(y: Tensor) -> Tensor:  # [B] -> [4B]
    """``4 y_b + k``, in 0..4C-1, for the images of :func:`rotations`."""
    return (QUARTERS * y[:, None] + torch.arange(QUARTERS, device=y.device)).flatten()


def class_logits(joint: Tensor) -> Tensor:  # [..., 4C] -> [..., C]
    """The sum of each class's four logits: class logits from the logits of class and rotation."""
    return joint.unflatten(-1, (-1, QUARTERS)).sum(-1)


ROTATIONS = 4


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
        return nn.Sequential(*rest, network.embed, nn.Linear(network.embedding_size, ROTATIONS * network.task.num_classes))

    def forward(self, stages: Sequence[Tensor], detach: bool) -> list[Tensor]:  # -> L times [4B, 4C]
        """Logits of class and rotation, index ``4 class + rotation``, for each stage's map."""
        return [branch(stage.detach() if detach else stage) for branch, stage in zip(self.branches, stages, strict=True)]


def extensible(pair: TeacherStudent) -> None:
    """Reject networks without an additional stage for the last branch, and images that are not square."""
    height, width = pair.task.shape[-2:]
    require(height == width, "data", "must have square images: they are turned by quarters (data.size)", f"{height}x{width}")
    try:
        pair.student.extra_stage()
    except ValueError as error:
        raise ConfigError(str(error).replace("model", "student", 1)) from error


def upright(output: Output) -> Output:
    """The outputs for the images that are not rotated: every fourth one."""
    return Output(output.logits[::ROTATIONS], output.embedding[::ROTATIONS])


def turned(batch: Batch) -> Tensor:  # [4B, ...]
    """A batch's images in all four rotations."""
    assert batch.x is not None, "images are distilled on"
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
        """Both networks need equally many stages, and the teacher needs branches."""
        same_number(pair)
        if not isinstance(pair.teacher_method, Branches):
            raise ConfigError(
                "teaching must give the teacher branches (teaching=[distiller=hsakd_teacher,student_init=teacher]), "
                f"got {list(self.teaching)}"
            )
        extensible(pair)

    def preparation(self) -> Sequence[str]:
        """The training of the teacher's branches."""
        return self.teaching

    def modules(self, pair: TeacherStudent) -> nn.Module:
        """The student's branches."""
        return Branches(pair.fresh)

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labelled: bool) -> tuple[Tensor, Metrics]:
        """``ce``, ``joint`` and ``kd``, and their sum."""
        assert teacher is not None, "the method has a teacher"
        x = turned(batch)
        student, said = model.submodule("student")(x), teacher.submodule("student")(x)
        learnt, known = model.submodule("method")(student.stages, self.detach), teacher.submodule("method")(said.stages, True)
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
        """The network must have an additional stage for the last branch, and images must be square."""
        extensible(pair)

    def modules(self, pair: TeacherStudent) -> nn.Module:
        """The peer, and the branches of both networks."""
        return Peer(pair)

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labelled: bool) -> tuple[Tensor, Metrics]:
        """``ce``, ``self_supervised``, ``kd`` and ``joint``, and their sum."""
        assert labelled, "rotations of classes need labels"
        x, labels, method = turned(batch), joint_labels(batch.y), model.submodule("method")
        outputs = [model.submodule("student")(x), method.submodule("network")(x)]
        branches = [method.submodule(name)(output.stages, False) for name, output in zip(("own", "branches"), outputs)]
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

    scale: ClassVar[str | None] = "joint"

    joint: float
    frozen: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        weight(self.joint, "joint")

    @property
    def needs_labels(self) -> bool:
        """Labels are needed unless the network is frozen and predicts them itself."""
        return not self.frozen

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """The network must have an additional stage for the last branch, and images must be square."""
        extensible(pair)

    def modules(self, pair: TeacherStudent) -> nn.Module:
        """The network's branches."""
        return Branches(pair.fresh)

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labelled: bool) -> tuple[Tensor, Metrics]:
        """``ce`` and ``joint``, and their sum."""
        assert labelled or self.frozen, "rotations of classes need labels"
        network = model.submodule("student")
        output = network.eval_copy()(turned(batch)) if self.frozen else network(turned(batch))
        y = batch.y if labelled else upright(output).logits.argmax(-1)
        q, labels = model.submodule("method")(output.stages, self.frozen), joint_labels(y)
        terms = {
            "ce": self.ce * classification(upright(output), None, y, True),
            "joint": self.joint * torch.stack([cross_entropy(one, labels).mean() for one in q]).sum(),
        }
        return torch.stack(list(terms.values())).sum(), terms
