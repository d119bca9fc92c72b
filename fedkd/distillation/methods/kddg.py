"""KDDG: distillation for domain generalization, with a filter on the gradient of the distillation loss."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedkd.distillation.methods.base import Distiller, check_temperature, check_weight, classification_loss
from fedkd.errors import require
from fedkd.losses.gradient_filter import FILTERS, filter_gradient, gradient_mask
from fedkd.losses.kl import kl_divergence
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics


@dataclass(kw_only=True)
class KDDG(Distiller):
    """Loss: ``ce CE(z_s, y) + weight T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, gradient by z_s times a mask in {0, 1}.

    The teacher has the student's architecture and is trained on the pooled source domains. The filter does not change the value of the
    loss.

    Source:
        Wang, Li, Chau, Kot: Embracing the dark knowledge: Domain generalization using regularized knowledge distillation, ACM MM 2021.
        No public code. Only the abstract of the paper was available.

    Args:
        weight: Weight of the divergence, >= 0. The convex form has ``ce = 1 - weight``.
        temperature: Temperature T, > 0.
        filter: ``sample_conf`` drops an image if the student is at least as confident of the label as the teacher. ``target_only`` then
            drops its label's entry alone, ``nontarget_only`` all other entries. ``sym`` drops entries that differ by at most ``threshold``,
            ``wrong_teacher`` images that the teacher misclassifies. ``none`` drops nothing.
        apply_to: Filter ``kd``, ``ce`` or ``both``.
        threshold: Threshold of ``sym``, >= 0.

    Deviations:
        - Unknown, because it is not known which gradients the paper filters. The filters are readings of its idea, and no result here is
          the paper's.
    """

    needs_teacher: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "weight"

    weight: float
    temperature: float
    filter: Literal["none", "sample_conf", "target_only", "nontarget_only", "sym", "wrong_teacher"]
    apply_to: Literal["kd", "ce", "both"]
    threshold: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self.weight)
        check_temperature(self.temperature)
        require(self.filter in FILTERS, "filter", f"must be one of {', '.join(FILTERS)}", self.filter)
        require(self.apply_to in ("kd", "ce", "both"), "apply_to", "must be kd, ce or both", self.apply_to)
        require(self.threshold >= 0, "threshold", "must be >= 0", self.threshold)

    def loss(self, model: FunctionalModel, teacher: FunctionalModel | None, batch: Batch, labeled: bool) -> tuple[Tensor, Metrics]:
        """``ce`` and ``kd``, and their sum."""
        assert teacher is not None, "the method has a teacher"
        student, teacher_output = model.submodule("student")(batch.x), teacher.submodule("student")(batch.x)
        y = batch.y if labeled else teacher_output.logits.argmax(-1)
        keep = gradient_mask(self.filter, teacher_output.logits, student.logits.detach(), y, self.temperature, self.threshold)
        through = student._replace(logits=filter_gradient(student.logits, keep))
        kd, ce = (through if self.apply_to in (which, "both") else student for which in ("kd", "ce"))
        terms = {
            "ce": self.ce * classification_loss(ce, teacher_output, batch.y, labeled),
            "kd": self.weight * kl_divergence(teacher_output.logits, kd.logits, self.temperature).mean(),
        }
        return torch.stack(list(terms.values())).sum(), terms
