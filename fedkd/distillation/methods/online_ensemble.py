"""An ensemble of networks of falling width, trained in one run: all learn from their mean, the narrow ones from the widest too."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd.distillation.methods.base import Distiller, StudentModule, TeacherStudent, temperature, weight
from fedkd.errors import require
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.hint import hint
from fedkd.losses.kl import kl_divergence
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, submodule_tensors
from fedkd.types import Metrics, Output, Tensors


class Members(StudentModule):
    """The widest network, the others on its stem, and maps from their stages to its own. Calling it gives an Output a member.

    Args:
        pair: the student is the widest.
        members: N, of widths ``floor(width (N - j) / N)`` in the stages that are narrowed.
        narrowed: how many stages are, from the last.
        detach: the stem learns from the widest alone.
    """

    def __init__(self, pair: TeacherStudent, members: int, narrowed: int, detach: bool) -> None:
        super().__init__(pair.student)
        widths = self.student.widths
        rules = [
            [w * (members - j) // members if i >= len(widths) - narrowed else w for i, w in enumerate(widths)] for j in range(1, members)
        ]
        self.stem = self.student.stages[0][0][0].out_channels
        self.whole = tuple(pair.fresh(stem=self.stem, widths=rule) for rule in rules)  # not registered: forms of what leaves the house
        self.detach = detach
        self.method.members = nn.ModuleList(Member(network) for network in self.whole)
        self.method.adapters = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(narrow, wide, 1) for narrow, wide in zip(rule, widths, strict=True)) for rule in rules
        )

    def forward(self, x: Tensor) -> list[Output]:
        stem = self.student.stages[0][0](x)
        first = Member.run(stem, [self.student.stages[0][1:], *self.student.stages[1:]], self.student.embed, self.student.head)
        return [first, *(member(stem.detach() if self.detach else stem) for member in self.method.members)]


class Member(nn.Module):
    """A network without its stem; what is left is called as it was."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stages = nn.ModuleList([network.stages[0][1:], *network.stages[1:]])
        self.embed, self.head = network.embed, network.head

    def forward(self, stem: Tensor) -> Output:
        return self.run(stem, self.stages, self.embed, self.head)

    @staticmethod
    def run(x: Tensor, stages: Any, embed: nn.Module, head: nn.Module) -> Output:
        """Stages, embedding and head after the stem."""
        maps = []
        for stage in stages:
            x = stage(x)
            maps.append(x)
        z = embed(x)
        return Output(head(z), z, tuple(maps))


@dataclass(kw_only=True)
class OnlineEnsemble(Distiller):
    """``ce sum_j CE(z_j, y) + maps sum_ij mean (M_i0 - A_ij(M_ij))^2 + kd sum_j T^2 KL(softmax(z_E / T) || softmax(z_j / T))``, ``z_E = mean_j z_j``.

    z_E and the widest member's maps M_i0 carry no gradient. Walawalkar, Shen, Savvides: Online ensemble model compression using
    knowledge distillation, ECCV 2020, and its public code: N networks of widths ``floor(width (N - j) / N)`` on one stem. Each leaves
    the house: the widest as ``student``, then ``member-1``...

    The ensemble is a plain mean, as in the public code, and teaches its widest member too; the paper may weight it.

    Deviations: with ``narrowed`` below three all stages are compared (there the first so many, while the last are narrowed); every epoch's
    networks are scored, and the last's leave the house (there the best of the ensemble on the test set). BatchNorm is evaluated with its running statistics (the public code uses the test batch's, and updates them: ``bn_eval:
    batch`` does the former). Adapters learn from the first step (there: from the second epoch, with an optimizer made anew:
    ``official_warm``). Networks begin as ResNets do here (there: Xavier's normal).

    Args:
        maps: >= 0, weight of the stages.
        kd: >= 0, weight of the ensemble's answer.
        temperature: > 0, T.
        members: > 0, N.
        narrowed: 1..3, stages that are narrowed, from the last.
        adapters: 1x1 convolutions bring a member's map to the widest's channels; without them the means over channels are compared.
        adapter_lr: > 0, what the learning rate of the adapters is multiplied by.
        official_warm: adapters rest in the first epoch, and the optimizer forgets it (public code).
        detach: the stem learns from the widest member alone.
        bn_eval: ``running`` statistics in evaluation, or the test ``batch``'s own (public code).
    """

    needs_labels: ClassVar[bool] = True
    scale: ClassVar[str | None] = "kd"

    maps: float
    kd: float
    temperature: float
    members: int
    narrowed: int
    adapters: bool
    adapter_lr: float
    official_warm: bool
    detach: bool
    bn_eval: Literal["running", "batch"]

    def __post_init__(self) -> None:
        super().__post_init__()
        weight(self.maps, "maps")
        weight(self.kd, "kd")
        temperature(self.temperature)
        require(self.members > 0, "members", "must be > 0", self.members)
        require(self.adapter_lr > 0, "adapter_lr", "must be > 0", self.adapter_lr)
        require(self.bn_eval in ("running", "batch"), "bn_eval", "must be running or batch", self.bn_eval)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        widths = getattr(pair.student, "widths", None)
        require(widths is not None, "student", "must be a ResNet, whose members differ in width", type(pair.student).__name__)
        require(1 <= self.narrowed <= len(widths), "narrowed", f"must be in 1..{len(widths)}, the student's stages", self.narrowed)
        require(self.members <= min(widths), "members", f"must be at most the student's smallest width ({min(widths)})", self.members)

    def learner(self, pair: TeacherStudent) -> StudentModule:
        return Members(pair, self.members, self.narrowed, self.detach)

    def lr_of(self, name: str, epoch: int) -> float:
        if not name.startswith("method.adapters."):
            return 1.0
        return 0.0 if self.official_warm and epoch == 0 else self.adapter_lr

    def forgets(self, epoch: int) -> bool:
        return self.official_warm and epoch == 1

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labelled: bool) -> tuple[Tensor, Metrics]:
        assert labelled, "an ensemble without a teacher needs labels"
        outputs = model(batch.x)
        ensemble = torch.stack([output.logits for output in outputs]).mean(0).detach()
        wide = [stage.detach() for stage in outputs[0].stages]
        if self.adapters:
            made = adapt(model, outputs)
        else:
            wide, made = [m.mean(1) for m in wide], [[stage.mean(1) for stage in output.stages] for output in outputs[1:]]
        apart = [hint(target, stage).mean() for each in made for target, stage in zip(wide, each, strict=True)]
        terms = {
            "ce": self.ce * torch.stack([cross_entropy(output.logits, batch.y).mean() for output in outputs]).sum(),
            "maps": self.maps * (torch.stack(apart).sum() if apart else outputs[0].logits.new_zeros(())),
            "kd": self.kd * torch.stack([kl_divergence(ensemble, output.logits, self.temperature).mean() for output in outputs]).sum(),
        }
        return torch.stack(list(terms.values())).sum(), terms

    def networks(self, learner: StudentModule, tensors: Tensors) -> dict[str, tuple[nn.Module, Tensors]]:
        assert isinstance(learner, Members), "the ensemble trains its members"
        stem = {key: value for key, value in submodule_tensors(tensors, "student").items() if key.startswith("stages.0.0.")}
        return {**super().networks(learner, tensors), **{
            f"member-{j}": (network, stem | submodule_tensors(tensors, f"method.members.{j - 1}")) for j, network in enumerate(learner.whole, 1)
        }}  # fmt: skip

    def changes(self, learner: StudentModule, name: str) -> dict[str, Any]:
        assert isinstance(learner, Members), "the ensemble trains its members"
        return (
            {} if name == "student" else {"stem": learner.stem, "widths": list(learner.whole[int(name.removeprefix("member-")) - 1].widths)}
        )


def adapt(model: FunctionalModel, outputs: list[Output]) -> list[list[Tensor]]:
    """The maps of every member but the widest, as wide as its own."""
    adapters = model.within("method").within("adapters")
    return [
        [adapters.within(str(j)).within(str(i))(stage) for i, stage in enumerate(output.stages)] for j, output in enumerate(outputs[1:])
    ]
