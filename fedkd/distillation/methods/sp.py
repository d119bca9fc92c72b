"""SP: similarity-preserving distillation matches the Gram matrices of a batch's features."""

from dataclasses import dataclass
from typing import ClassVar

from fedkd.distillation.methods.base import Distiller, StepInput, TeacherStudent, check_weight
from fedkd.errors import require
from fedkd.losses.similarity_preserving import similarity_preserving
from fedkd.types import Metrics


@dataclass(kw_only=True)
class SP(Distiller):
    """Loss: ``ce CE(z_s, y) + weight / B^2 ||G_t - G_s||_F^2``.

    G is the Gram matrix of a batch's feature maps of one stage, with rows scaled to length 1. The term becomes smaller with larger batches.
    The shipped weight is meant for batches of 64.

    Source:
        Tung, Mori: Similarity-preserving knowledge distillation, ICCV 2019.
        Public code: HobbitLong/RepDistiller @ b84f547.

    Args:
        weight: Weight of the distance of Gram matrices, >= 0.
        stage: Stage whose feature maps are compared. -1 is the last.

    Deviations:
        - None known for one pair of stages. The sum over several pairs is not implemented.
    """

    needs_teacher: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "weight"

    weight: float
    stage: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self.weight)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """Both networks need the stage, and a batch must have two images or more."""
        for sizes in pair.sizes:
            sizes.stage(self.stage, "stage")
        require(batch_size > 1, "batch_size", "must be > 1, as pairs of images are compared", batch_size)

    def terms(self, step: StepInput) -> Metrics:
        """``similarity``: the weighted distance of Gram matrices."""
        teacher, student = (output.stages[self.stage] for output in (step.teacher, step.student))
        return {"similarity": self.weight * similarity_preserving(teacher, student).mean()}
