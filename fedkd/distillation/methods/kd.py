"""Distillation of logits."""

from dataclasses import dataclass
from typing import ClassVar

from fedkd.distillation.methods.base import Distiller, StepInput, temperature, weight
from fedkd.losses.kl import kl_divergence
from fedkd.types import Metrics


@dataclass(kw_only=True)
class KD(Distiller):
    """``ce CE(z_s, y) + weight T^2 KL(softmax(z_t / T) || softmax(z_s / T))``.

    Hinton, Vinyals, Dean: Distilling the knowledge in a neural network, 2015. Shipped as in the public recipes for CIFAR: T = 4, 0.1, 0.9.

    Args:
        weight: >= 0, of the divergence.
        temperature: > 0, T.
    """

    taught: ClassVar[bool] = True
    scale: ClassVar[str | None] = "weight"

    weight: float
    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        weight(self.weight)
        temperature(self.temperature)

    def terms(self, seen: StepInput) -> Metrics:
        return {"kd": self.weight * kl_divergence(seen.teacher.logits, seen.student.logits, self.temperature).mean()}
