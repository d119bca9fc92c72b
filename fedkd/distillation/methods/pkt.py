"""PKT: probabilistic knowledge transfer matches the cosine similarities of embeddings within a batch."""

from dataclasses import dataclass
from typing import ClassVar

from fedkd.distillation.methods.base import Distiller, StepInput, TeacherStudent, check_weight
from fedkd.errors import require
from fedkd.losses.probabilistic_transfer import cosine_knowledge_transfer
from fedkd.types import Metrics


@dataclass(kw_only=True)
class PKT(Distiller):
    """Loss: ``ce CE(z_s, y) + weight / B^2 sum_ij P_ij ln(P_ij / Q_ij)``.

    P and Q are the cosine similarities of a batch's embeddings of teacher and student, scaled to rows of sum 1. The term becomes smaller
    with larger batches. The shipped weight is meant for batches of 64.

    Source:
        Passalis, Tefas: Learning deep representations with probabilistic knowledge transfer, ECCV 2018.
        Public code: HobbitLong/RepDistiller @ b84f547.

    Args:
        weight: Weight of the divergence, >= 0.

    Deviations:
        - As in the public recipes, the similarity of an image with itself is part of its row.
    """

    needs_teacher: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "weight"

    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self.weight)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """A batch must have two images or more."""
        require(batch_size > 1, "batch_size", "must be > 1, as pairs of images are compared", batch_size)

    def terms(self, step: StepInput) -> Metrics:
        """``pkt``: the weighted divergence."""
        return {"pkt": self.weight * cosine_knowledge_transfer(step.teacher.embedding, step.student.embedding).mean()}
