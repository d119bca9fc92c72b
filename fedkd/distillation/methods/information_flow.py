"""Information flow: matches the pairwise similarities of every layer, with early layers weighted less from epoch to epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedkd.distillation.methods.base import Distiller, EpochSteps, StepInput, TeacherStudent, check_equal_stages, check_weight
from fedkd.errors import require
from fedkd.losses.probabilistic_transfer import KERNELS, MIXTURES, probabilistic_knowledge_transfer
from fedkd.types import Metrics, Output, Tensors


@dataclass(kw_only=True)
class InformationFlow(Distiller):
    """Loss: ``ce CE(z_s, y) + weight (L(last) + w_k sum_i L(i))``, ``w_k = initial decay^k`` in epoch k, counted from 0.

    Layer: ``L = sum_K mean_ij (P_ij - Q_ij)(ln P_ij - ln Q_ij)``, ``P_ij = K(x_i, x_j) / sum_k K(x_i, x_k)``.

    P are the teacher's and Q the student's conditional similarities in one layer, and K runs over the kernels. The last layer is the
    embedding. The other layers i are the feature maps of the stages, matched one to one. ``teaching`` first trains an auxiliary teacher of
    the student's form from the real teacher.

    Source:
        Passalis, Tzelepi, Tefas: Heterogeneous knowledge distillation using information flow modeling, CVPR 2020.
        Public code: passalis/pkth @ 5766e63.

    Args:
        weight: Weight of all layers, >= 0.
        kernels: One or more of ``cosine``, ``student_t``, ``rbf``, ``adaptive_rbf`` and ``cauchy``. Their losses are added. ``combined``
            stands for the first two, the paper's hybrid.
        divergence: ``jeffreys`` (the equation above), ``kl``, ``absolute`` or ``squared``.
        diagonal: Include ``K(x_i, x_i)`` in the sum of a row (public code). The paper excludes it.
        layers: Compare ``all`` layers or the ``last``.
        initial: w_0, >= 0.
        decay: Factor of w_k per epoch, in [0, 1].
        forgetful: Start every epoch with a new optimizer, as the public code does.
        teaching: Overrides of the training of an auxiliary teacher. Empty: the teacher is used directly.

    Deviations:
        - From the public code: the optimizer keeps its state over epochs, unless ``forgetful`` is set.
        - From the public code: two of its divergences, exponential and kagan, are not implemented.
        - As in the public code there is no cross-entropy as shipped (``ce=0``). This is the paper's setting without labels.
    """

    needs_teacher: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "weight"

    weight: float
    kernels: Sequence[str]
    divergence: Literal["jeffreys", "kl", "absolute", "squared"]
    diagonal: bool
    layers: Literal["all", "last"]
    initial: float
    decay: float
    forgetful: bool
    teaching: Sequence[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self.weight)
        check_weight(self.initial, "initial")
        require(0 <= self.decay <= 1, "decay", "must be in 0..1", self.decay)
        known = {*self.kernels} <= {*KERNELS, *MIXTURES}
        require(
            known and len(self.kernels) > 0, "kernels", f"must name one or more of {', '.join([*KERNELS, *MIXTURES])}", list(self.kernels)
        )

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """A batch must have pairs of images, and ``layers=all`` needs equally many stages."""
        least = 1 if self.diagonal else 2
        require(batch_size > least, "batch_size", f"must be > {least}, as pairs of images are compared", batch_size)
        if self.layers == "all":
            check_equal_stages(pair)

    def teacher_training(self) -> Sequence[str]:
        """The training of the auxiliary teacher."""
        return self.teaching

    def resets_optimizer(self, epoch: int) -> bool:
        """Every epoch where ``forgetful`` is set."""
        return self.forgetful

    def draw(self, steps: EpochSteps) -> Tensors:
        """``critical``: the weight w_k for every step."""
        return {"critical": torch.full((steps.number,), self.initial * self.decay**steps.epoch)}

    def terms(self, step: StepInput) -> Metrics:
        """``last``: the weighted divergence of the embeddings. ``flow``: that of the other layers."""
        layers = zip(representations(step.teacher, self.layers), representations(step.student, self.layers))
        last, *others = [self.divergence_of(teacher, student) for teacher, student in layers]
        terms = {"last": self.weight * last}
        if others:
            terms["flow"] = self.weight * step.batch.critical.to(last.dtype) * torch.stack(others).sum()
        return terms

    def divergence_of(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The divergence of one layer's similarities, summed over kernels."""
        values = [
            probabilistic_knowledge_transfer(teacher, student, kernel=kernel, divergence=self.divergence, diagonal=self.diagonal).mean()
            for kernel in self.kernels
        ]
        return torch.stack(values).sum()


def representations(output: Output, layers: str) -> list[Tensor]:  # [B, ...]
    """The embedding, then the flattened feature maps from the last stage to the first."""
    maps = reversed(output.stages) if layers == "all" else ()
    return [output.embedding, *(stage.flatten(1) for stage in maps)]
