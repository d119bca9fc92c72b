"""Attention transfer."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedkd.distillation.methods.base import Distiller, StepInput, TeacherStudent, maps, same_number, weight
from fedkd.errors import require
from fedkd.losses.attention_transfer import attention_transfer
from fedkd.types import Metrics


@dataclass(kw_only=True)
class AT(Distiller):
    """``ce CE(z_s, y) + weight sum_l mean (a(F_s^l) - a(F_t^l))^2``, ``a(F)`` the normalised map of ``mean_c |F_c|^p``, l every stage.

    Zagoruyko, Komodakis: Paying more attention to attention, ICLR 2017, with the means and the weight of public recipes: the paper's
    norm of the difference, halved, is another scale.

    Args:
        weight: >= 0, of the sum over stages.
        power: >= 1, p.
    """

    taught: ClassVar[bool] = True
    scale: ClassVar[str | None] = "weight"

    weight: float
    power: float

    def __post_init__(self) -> None:
        super().__post_init__()
        weight(self.weight)
        require(self.power >= 1, "power", "must be >= 1 (2 is the paper's)", self.power)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        same_number(pair)
        maps(pair)

    def terms(self, seen: StepInput) -> Metrics:
        pairs = zip(seen.teacher.stages, seen.student.stages, strict=True)
        apart = torch.stack([attention_transfer(t, s, power=self.power).mean() for t, s in pairs])
        return {"attention": self.weight * apart.sum()}
