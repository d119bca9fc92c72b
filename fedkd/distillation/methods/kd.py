"""KD: distillation of softened logits."""

from dataclasses import dataclass
from typing import ClassVar

from fedkd.distillation.methods.base import Distiller, StepInput, check_temperature, check_weight
from fedkd.losses.kl import kl_divergence
from fedkd.types import Metrics


@dataclass(kw_only=True)
class KD(Distiller):
    """Loss: ``ce CE(z_s, y) + weight T^2 KL(softmax(z_t / T) || softmax(z_s / T))``.

    z_s and z_t are the logits of student and teacher. The shipped values are those of the public recipes for CIFAR-100.

    Source:
        Hinton, Vinyals, Dean: Distilling the knowledge in a neural network, 2015.
        Public code: HobbitLong/RepDistiller @ b84f547, megvii-research/mdistiller @ a08d46f.

    Args:
        weight: Weight of the divergence, >= 0.
        temperature: Temperature T, > 0.

    Deviations:
        - None known.
    """

    needs_teacher: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "weight"

    weight: float
    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self.weight)
        check_temperature(self.temperature)

    def terms(self, step: StepInput) -> Metrics:
        """``kd``: the weighted divergence."""
        return {"kd": self.weight * kl_divergence(step.teacher.logits, step.student.logits, self.temperature).mean()}
