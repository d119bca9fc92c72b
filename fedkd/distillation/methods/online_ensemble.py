"""Online ensemble: networks of decreasing width train together and learn from their mean logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd.distillation.methods.base import Distiller, StudentModule, TeacherStudent, check_temperature, check_weight
from fedkd.errors import require
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.hint import hint
from fedkd.losses.kl import kl_divergence
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, submodule_tensors
from fedkd.types import Metrics, Output, Tensors


class Members(StudentModule):
    """The widest network, the narrower ones on its stem, and adapters from their stages to its own. A call returns one Output per member.

    Args:
        pair: The student is the widest member.
        members: Number N of members. Member j has width ``floor(width (N - j) / N)`` in the narrowed stages.
        narrowed: Number of narrowed stages, counted from the last.
        detach: Train the stem through the widest member alone.
    """

    def __init__(self, pair: TeacherStudent, members: int, narrowed: int, detach: bool) -> None:
        super().__init__(pair.student)
        widest: Any = pair.student
        widths = widest.widths
        narrow_widths = [
            [width * (members - j) // members if i >= len(widths) - narrowed else width for i, width in enumerate(widths)]
            for j in range(1, members)
        ]
        self.stem = widest.stages[0][0][0].out_channels
        self.whole: tuple[Any, ...] = tuple(pair.fresh(stem=self.stem, widths=each) for each in narrow_widths)
        """The narrower networks with stems, as they are saved. A tuple, so that their parameters are not registered."""
        self.detach = detach
        self.method.members = nn.ModuleList(Member(network) for network in self.whole)
        self.method.adapters = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(narrow, wide, 1) for narrow, wide in zip(each, widths, strict=True)) for each in narrow_widths
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Members":
        """Also for the stems of the narrower networks, which are not registered, so that their device and type are those of the rest."""
        super()._apply(fn, recurse)
        for network in self.whole:
            network.stages[0][0]._apply(fn, recurse)
        return self

    def forward(self, x: Tensor) -> list[Output]:  # type: ignore[override]  # several students
        """One Output per member, widest first."""
        widest: Any = self.student
        stem = widest.stages[0][0](x)
        first = Member.run(stem, [widest.stages[0][1:], *widest.stages[1:]], widest.embed, widest.head)
        return [first, *(member(stem.detach() if self.detach else stem) for member in self.method.members)]


class Member(nn.Module):
    """A network without its stem. Its parameters keep their names."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stages = nn.ModuleList([network.stages[0][1:], *network.stages[1:]])
        self.embed, self.head = network.embed, network.head

    def forward(self, stem: Tensor) -> Output:
        """The output for the stem's features."""
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
    """Loss: ``ce sum_j CE(z_j, y) + maps sum_ij mean (M_i0 - A_ij(M_ij))^2 + kd sum_j T^2 KL(softmax(z_E / T) || softmax(z_j / T))``.

    Ensemble: ``z_E = mean_j z_j``.

    N members j of widths ``floor(width (N - j) / N)`` share one stem. M_ij is the map of stage i of member j, A_ij a 1x1 convolution. z_E
    and the maps M_i0 of the widest member carry no gradient. All members are saved: the widest as ``student``, the others as ``member-1``,
    ``member-2``, ...

    Source:
        Walawalkar, Shen, Savvides: Online ensemble model compression using knowledge distillation, ECCV 2020.
        Public code: Devwalkar/BOC-KD @ a19bab4.

    Args:
        maps: Weight of the stages, >= 0.
        kd: Weight of the divergence from the ensemble, >= 0.
        temperature: Temperature T, > 0.
        members: Number N of members, > 0.
        narrowed: Number of narrowed stages, counted from the last, 1 to 3.
        adapters: Map each member's channels to the widest's with 1x1 convolutions. Otherwise the means over channels are compared.
        adapter_lr: Factor of the learning rate of the adapters, > 0.
        official_warm: Do not train adapters in the first epoch, then reset the optimizer, as the public code does.
        detach: Train the stem through the widest member alone.
        bn_eval: BatchNorm in evaluation uses ``running`` statistics, or those of the test ``batch`` as in the public code.

    Deviations:
        - The ensemble is a plain mean and teaches its widest member too, as in the public code. The paper may weight it.
        - From the public code: the networks of the last epoch are saved. The public code keeps the best epoch of the ensemble on the test
          set.
        - From the public code: BatchNorm is evaluated with running statistics. The public code uses the test batch's, and updates the
          running ones with them.
        - From the public code: adapters train from the first step, unless ``official_warm`` is set.
        - From the public code: with ``narrowed`` < 3 all stages are compared. The public code compares the first stages while it narrows
          the last.
        - From the public code: weights have the initialization of this library's ResNets. The public code uses Xavier's normal.
    """

    needs_labels: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "kd"

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
        check_weight(self.maps, "maps")
        check_weight(self.kd, "kd")
        check_temperature(self.temperature)
        require(self.members > 0, "members", "must be > 0", self.members)
        require(self.adapter_lr > 0, "adapter_lr", "must be > 0", self.adapter_lr)
        require(self.bn_eval in ("running", "batch"), "bn_eval", "must be running or batch", self.bn_eval)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """The student must be a ResNet with widths, not narrower than the number of members."""
        widths: Sequence[int] = getattr(pair.student, "widths", ())
        require(len(widths) > 0, "student", "must be a ResNet, whose members differ in width", type(pair.student).__name__)
        require(1 <= self.narrowed <= len(widths), "narrowed", f"must be in 1..{len(widths)}, the student's stages", self.narrowed)
        require(self.members <= min(widths), "members", f"must be at most the student's smallest width ({min(widths)})", self.members)

    def learner(self, pair: TeacherStudent) -> StudentModule:
        """All members and their adapters."""
        return Members(pair, self.members, self.narrowed, self.detach)

    def lr_factor_of(self, name: str, epoch: int) -> float:
        """``adapter_lr`` for the adapters, or 0 in the first epoch with ``official_warm``."""
        if not name.startswith("method.adapters."):
            return 1.0
        return 0.0 if self.official_warm and epoch == 0 else self.adapter_lr

    def resets_optimizer(self, epoch: int) -> bool:
        """After the first epoch with ``official_warm``."""
        return self.official_warm and epoch == 1

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labeled: bool) -> tuple[Tensor, Metrics]:
        """``ce``, ``maps`` and ``kd``, and their sum."""
        assert labeled, "an ensemble without a teacher needs labels"
        outputs = model(batch.x)
        ensemble = torch.stack([output.logits for output in outputs]).mean(0).detach()
        targets = [stage.detach() for stage in outputs[0].stages]
        if self.adapters:
            maps = adapt(model, outputs)
        else:
            targets, maps = [target.mean(1) for target in targets], [[stage.mean(1) for stage in output.stages] for output in outputs[1:]]
        distances = [hint(target, stage).mean() for stages in maps for target, stage in zip(targets, stages, strict=True)]
        terms = {
            "ce": self.ce * torch.stack([cross_entropy(output.logits, batch.y).mean() for output in outputs]).sum(),
            "maps": self.maps * (torch.stack(distances).sum() if distances else outputs[0].logits.new_zeros(())),
            "kd": self.kd * torch.stack([kl_divergence(ensemble, output.logits, self.temperature).mean() for output in outputs]).sum(),
        }
        return torch.stack(list(terms.values())).sum(), terms

    def networks(self, learner: StudentModule, tensors: Tensors) -> dict[str, tuple[nn.Module, Tensors]]:
        """``student``, then ``member-1`` and so on, each with the shared stem."""
        assert isinstance(learner, Members), "the ensemble trains its members"
        stem = {key: value for key, value in submodule_tensors(tensors, "student").items() if key.startswith("stages.0.0.")}
        return {**super().networks(learner, tensors), **{
            f"member-{j}": (network, stem | submodule_tensors(tensors, f"method.members.{j - 1}"))
            for j, network in enumerate(learner.whole, 1)
        }}  # fmt: skip

    def config_changes(self, learner: StudentModule, name: str) -> dict[str, Any]:
        """Stem and widths of a narrower member."""
        assert isinstance(learner, Members), "the ensemble trains its members"
        return (
            {} if name == "student" else {"stem": learner.stem, "widths": list(learner.whole[int(name.removeprefix("member-")) - 1].widths)}
        )


def adapt(model: FunctionalModel, outputs: list[Output]) -> list[list[Tensor]]:
    """The maps of every member but the widest, mapped to the widest's channels."""
    adapters = model.submodule("method").submodule("adapters")
    return [
        [adapters.submodule(str(j)).submodule(str(i))(stage) for i, stage in enumerate(output.stages)]
        for j, output in enumerate(outputs[1:])
    ]
