"""A network that learns class and rotation at every stage: HSAKD's teacher, and by itself self-supervised augmentation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkd.batch import Batch
from fedkd.bound import Bound
from fedkd.distillers.distiller import Distiller, classification, weight
from fedkd.distillers.hsakd import Branches, extensible, turned, upright
from fedkd.distillers.pair import Pair
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.rotation import joint_labels
from fedkd.types import Metrics


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

    def check(self, pair: Pair, batch_size: int) -> None:
        extensible(pair)

    def modules(self, pair: Pair) -> nn.Module:
        return Branches(pair.fresh)

    def loss(self, model: Bound, teacher: Bound | None, batch: Batch, labelled: bool) -> tuple[Tensor, Metrics]:
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
