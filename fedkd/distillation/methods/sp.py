"""Similarity-preserving distillation."""

from dataclasses import dataclass
from typing import ClassVar

from fedkd.distillation.methods.base import Distiller, StepInput, TeacherStudent, weight
from fedkd.errors import require
from fedkd.losses.similarity_preserving import similarity_preserving
from fedkd.types import Metrics


@dataclass(kw_only=True)
class SP(Distiller):
    """``ce CE(z_s, y) + weight / B^2 ||G_t - G_s||_F^2``, G the row-normalised Gram matrix of a batch's maps of one stage.

    Tung, Mori: Similarity-preserving knowledge distillation, ICCV 2019. The value falls with the batch size: 3000 goes with 64.

    Args:
        weight: >= 0, of the distance of Gram matrices.
        stage: whose map; -1 is the last.
    """

    taught: ClassVar[bool] = True
    scale: ClassVar[str | None] = "weight"

    weight: float
    stage: int

    def __post_init__(self) -> None:
        super().__post_init__()
        weight(self.weight)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        for sizes in pair.sizes:
            sizes.stage(self.stage, "stage")
        require(batch_size > 1, "batch_size", "must be > 1, as pairs of images are compared", batch_size)

    def terms(self, seen: StepInput) -> Metrics:
        teacher, student = (output.stages[self.stage] for output in (seen.teacher, seen.student))
        return {"similarity": self.weight * similarity_preserving(teacher, student).mean()}
