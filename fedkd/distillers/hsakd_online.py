"""Two networks that teach each other class and rotation at every stage, from scratch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkd.batch import Batch
from fedkd.bound import Bound, part
from fedkd.distillers.distiller import Distiller, Learner, classification, temperature, weight
from fedkd.distillers.hsakd import Branches, extensible, turned, upright
from fedkd.distillers.pair import Pair
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.kl import kl_divergence
from fedkd.losses.rotation import joint_labels
from fedkd.types import Metrics, Tensors


class Peer(nn.Module):
    """A second network of the student's kind, and the branches of both."""

    def __init__(self, pair: Pair) -> None:
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

    def check(self, pair: Pair, batch_size: int) -> None:
        extensible(pair)

    def modules(self, pair: Pair) -> nn.Module:
        return Peer(pair)

    def loss(self, model: Bound, teacher: Bound | None, batch: Batch, labelled: bool) -> tuple[Tensor, Metrics]:
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

    def networks(self, learner: Learner, tensors: Tensors) -> dict[str, tuple[nn.Module, Tensors]]:
        return {**super().networks(learner, tensors), "peer": (learner.method.network, part(tensors, "method.network"))}
