"""Distillation of a network's information flow: what each layer knows of the others' similarities, the early layers only early on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedkd.distillation.methods.base import Distiller, StepInput, Steps, TeacherStudent, same_number, weight
from fedkd.errors import require
from fedkd.losses.probabilistic_transfer import KERNELS, MIXTURES, probabilistic_knowledge_transfer
from fedkd.types import Metrics, Output, Tensors


@dataclass(kw_only=True)
class InformationFlow(Distiller):
    """``ce CE + weight (L(last) + w_k sum_i L(i))``, ``L = sum_K mean_ij (P_ij - Q_ij)(ln P_ij - ln Q_ij)``, ``w_k = initial decay^k``, k the epoch from 0.

    P are the teacher's, Q the student's conditional similarities ``K(x_i, x_j) / sum_k K(x_i, x_k)`` in one layer; the last layer is the
    embedding, the others the stages' maps, one to one. Passalis, Tzelepi, Tefas: Heterogeneous knowledge distillation using information
    flow modeling, CVPR 2020, and its public code. ``teaching`` makes the teacher an auxiliary one of the student's form, which learnt the
    last layer from the real one.

    Deviations: the optimizer goes on from epoch to epoch (the public code makes it anew: ``forgetful``); the public code has no CE
    (``ce: 0``, the paper's setting without labels).

    Args:
        weight: >= 0, of all layers.
        kernels: any of ``cosine``, ``student_t``, ``rbf``, ``adaptive_rbf``, ``cauchy``; their losses are added (the paper's hybrid: the first two,
            ``combined``).
        divergence: ``jeffreys``, ``kl``, ``absolute`` or ``squared`` (the public code has two more: exponential, kagan).
        diagonal: a row's sum has ``K(x_i, x_i)`` in it (public code), or not (paper).
        layers: ``all``, or the ``last``.
        initial: >= 0, w_0.
        decay: 0..1, of w_k.
        forgetful: the optimizer remembers nothing of earlier epochs (public code).
        teaching: overrides of the training that makes the teacher, beyond labels; empty: it is taken as it is.
    """

    taught: ClassVar[bool] = True
    scale: ClassVar[str | None] = "weight"

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
        weight(self.weight)
        weight(self.initial, "initial")
        require(0 <= self.decay <= 1, "decay", "must be in 0..1", self.decay)
        known = {*self.kernels} <= {*KERNELS, *MIXTURES}
        require(
            known and len(self.kernels) > 0, "kernels", f"must name one or more of {', '.join([*KERNELS, *MIXTURES])}", list(self.kernels)
        )

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        least = 1 if self.diagonal else 2
        require(batch_size > least, "batch_size", f"must be > {least}, as pairs of images are compared", batch_size)
        if self.layers == "all":
            same_number(pair)

    def preparation(self) -> Sequence[str]:
        return self.teaching

    def forgets(self, epoch: int) -> bool:
        return self.forgetful

    def draw(self, steps: Steps) -> Tensors:
        return {"critical": torch.full((steps.number,), self.initial * self.decay**steps.epoch)}

    def terms(self, seen: StepInput) -> Metrics:
        last, *others = [
            self.apart(t, s) for t, s in zip(representations(seen.teacher, self.layers), representations(seen.student, self.layers))
        ]
        terms = {"last": self.weight * last}
        if others:
            terms["flow"] = self.weight * seen.batch.critical.to(last.dtype) * torch.stack(others).sum()
        return terms

    def apart(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The divergence of one layer's similarities."""
        values = [
            probabilistic_knowledge_transfer(teacher, student, kernel=kernel, divergence=self.divergence, diagonal=self.diagonal).mean()
            for kernel in self.kernels
        ]
        return torch.stack(values).sum()


def representations(output: Output, layers: str) -> list[Tensor]:  # [B, ...]
    """The embedding, then the stages' maps from the last to the first, flat."""
    maps = reversed(output.stages) if layers == "all" else ()
    return [output.embedding, *(stage.flatten(1) for stage in maps)]
