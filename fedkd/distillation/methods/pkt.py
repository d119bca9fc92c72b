"""Probabilistic knowledge transfer."""

from dataclasses import dataclass
from typing import ClassVar

from fedkd.distillation.methods.base import Distiller, StepInput, TeacherStudent, weight
from fedkd.errors import require
from fedkd.losses.probabilistic_transfer import cosine_knowledge_transfer
from fedkd.types import Metrics


@dataclass(kw_only=True)
class PKT(Distiller):
    """``ce CE(z_s, y) + weight / B^2 sum_ij P_ij ln(P_ij / Q_ij)``, P and Q the similarities of embeddings by cosine, rows summing to one.

    Passalis, Tefas: Learning deep representations with probabilistic knowledge transfer, ECCV 2018, as public recipes for CIFAR have it:
    the diagonal is in the rows. The value falls with the batch size: 30000 goes with 64.

    Args:
        weight: >= 0, of the divergence.
    """

    taught: ClassVar[bool] = True
    scale: ClassVar[str | None] = "weight"

    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        weight(self.weight)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        require(batch_size > 1, "batch_size", "must be > 1, as pairs of images are compared", batch_size)

    def terms(self, seen: StepInput) -> Metrics:
        return {"pkt": self.weight * cosine_knowledge_transfer(seen.teacher.embedding, seen.student.embedding).mean()}
