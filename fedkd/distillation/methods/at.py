"""AT: attention transfer matches the normalized attention maps of all stages."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedkd.distillation.methods.base import Distiller, StepInput, TeacherStudent, check_equal_stages, check_feature_maps, check_weight
from fedkd.errors import require
from fedkd.losses.attention_transfer import attention_transfer
from fedkd.types import Metrics


@dataclass(kw_only=True)
class AT(Distiller):
    """Loss: ``ce CE(z_s, y) + weight sum_l mean (a(F_s^l) - a(F_t^l))^2``.

    ``a(F)`` is the map ``mean_c |F_c|^p`` over channels c, scaled to length 1. l runs over all stages.

    Source:
        Zagoruyko, Komodakis: Paying more attention to attention, ICLR 2017.
        Public code: HobbitLong/RepDistiller @ b84f547.

    Args:
        weight: Weight of the sum over stages, >= 0.
        power: Exponent p, >= 1. 2 is the paper's value.

    Deviations:
        - From the paper: the mean of squares replaces half the norm of the difference, as in the public recipes. The paper's weights are on
          another scale.
    """

    needs_teacher: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "weight"

    weight: float
    power: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self.weight)
        require(self.power >= 1, "power", "must be >= 1 (2 is the paper's)", self.power)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """Both networks need equally many stages, with feature maps."""
        check_equal_stages(pair)
        check_feature_maps(pair)

    def terms(self, step: StepInput) -> Metrics:
        """``attention``: the weighted sum over stages."""
        pairs = zip(step.teacher.stages, step.student.stages, strict=True)
        distances = torch.stack([attention_transfer(teacher, student, power=self.power).mean() for teacher, student in pairs])
        return {"attention": self.weight * distances.sum()}
