"""Distillation for domain generalisation: a teacher of the same kind, and a filter on what its answers pull at."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedkd.distillation.methods.base import Distiller, classification, temperature, weight
from fedkd.errors import require
from fedkd.losses.gradient_filter import FILTERS, filtered, mask
from fedkd.losses.kl import kl_divergence
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics


@dataclass(kw_only=True)
class KDDG(Distiller):
    """``ce CE(z_s, y) + weight T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, whose gradient by z_s is multiplied by a mask of zeros and ones.

    Wang, Li, Chau, Kot: Embracing the dark knowledge: Domain generalization using regularized knowledge distillation, ACM MM 2021, of
    which only the abstract could be read: the teacher is trained on the pooled source domains, and a gradient filter regularises. What is
    filtered is not known; ``filter`` has what can be meant, and no result here is the paper's.

    Deviations: the value of the loss is that without a filter. Everything but the idea is our choice.

    Args:
        weight: >= 0, of the divergence; the convex form is ``ce = 1 - weight``.
        temperature: > 0, T.
        filter: ``sample_conf`` drops an image where the student is at least as sure of the label as the teacher, ``target_only`` and
            ``nontarget_only`` only its label's or its other entries; ``sym`` drops entries that differ by ``threshold`` at most, ``wrong_teacher``
            images where the teacher errs; ``none``.
        apply_to: what is filtered: ``kd``, ``ce`` or ``both``.
        threshold: >= 0, of ``sym``.
    """

    taught: ClassVar[bool] = True
    scale: ClassVar[str | None] = "weight"

    weight: float
    temperature: float
    filter: Literal["none", "sample_conf", "target_only", "nontarget_only", "sym", "wrong_teacher"]
    apply_to: Literal["kd", "ce", "both"]
    threshold: float

    def __post_init__(self) -> None:
        super().__post_init__()
        weight(self.weight)
        temperature(self.temperature)
        require(self.filter in FILTERS, "filter", f"must be one of {', '.join(FILTERS)}", self.filter)
        require(self.apply_to in ("kd", "ce", "both"), "apply_to", "must be kd, ce or both", self.apply_to)
        require(self.threshold >= 0, "threshold", "must be >= 0", self.threshold)

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labelled: bool) -> tuple[Tensor, Metrics]:
        assert teacher is not None, "the method has a teacher"
        student, said = model.within("student")(batch.x), teacher.within("student")(batch.x)
        y = batch.y if labelled else said.logits.argmax(-1)
        keep = mask(self.filter, said.logits, student.logits.detach(), y, self.temperature, self.threshold)
        through = student._replace(logits=filtered(student.logits, keep))
        kd, ce = (through if self.apply_to in (which, "both") else student for which in ("kd", "ce"))
        terms = {
            "ce": self.ce * classification(ce, said, batch.y, labelled),
            "kd": self.weight * kl_divergence(said.logits, kd.logits, self.temperature).mean(),
        }
        return torch.stack(list(terms.values())).sum(), terms
