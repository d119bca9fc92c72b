"""Hierarchical self-supervised augmented distillation: every stage of both networks knows class and rotation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkd.batch import Batch
from fedkd.bound import Bound
from fedkd.check import require
from fedkd.distillers.distiller import Distiller, classification, temperature, weight
from fedkd.distillers.pair import Pair, same_number
from fedkd.losses.kl import kl_divergence
from fedkd.losses.rotation import rotations
from fedkd.models.classifier import Classifier
from fedkd.types import Metrics, Output

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


def extensible(pair: Pair) -> None:
    """Refuse a network that has no stage more to branch to, and images that cannot be turned."""
    height, width = pair.task.shape[-2:]
    require(height == width, "data", "must have square images: they are turned by quarters (data.size)", f"{height}x{width}")
    try:
        pair.student.extra_stage()
    except ValueError as error:
        raise ValueError(str(error).replace("model", "student", 1)) from error


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

    def check(self, pair: Pair, batch_size: int) -> None:
        same_number(pair)
        if not isinstance(pair.teacher_method, Branches):
            raise ValueError(
                f"teaching must give the teacher branches (teaching=[distiller=hsakd_teacher,init=teacher]), got {list(self.teaching)}"
            )
        extensible(pair)

    def preparation(self) -> Sequence[str]:
        return self.teaching

    def modules(self, pair: Pair) -> nn.Module:
        return Branches(pair.fresh)

    def loss(self, model: Bound, teacher: Bound | None, batch: Batch, labelled: bool) -> tuple[Tensor, Metrics]:
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
