"""Decoupled distillation of logits."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedkd.distillation.methods.base import Distiller, StepInput, Steps, temperature, weight
from fedkd.errors import require
from fedkd.losses.decoupled_kl import decoupled
from fedkd.types import Metrics, Tensors


@dataclass(kw_only=True)
class DKD(Distiller):
    """``ce CE(z_s, y) + w(e) T^2 (alpha KL(b_t || b_s) + beta KL(p_t || p_s))``, b of target and rest, p over the rest, ``w = min(e / warmup, 1)``.

    Zhao, Cui, Song, Qiu, Liang: Decoupled knowledge distillation, CVPR 2022; e counts epochs from 1.

    Args:
        alpha: >= 0, weight of the target's class.
        beta: >= 0, weight of the others. The paper tunes it by pair: 2 to 8 on CIFAR-100.
        temperature: > 0, T.
        warmup: >= 0, epochs until both have their full weight.
    """

    taught: ClassVar[bool] = True
    scale: ClassVar[str | None] = "beta"

    alpha: float
    beta: float
    temperature: float
    warmup: int

    def __post_init__(self) -> None:
        super().__post_init__()
        weight(self.alpha, "alpha")
        weight(self.beta, "beta")
        temperature(self.temperature)
        require(self.warmup >= 0, "warmup", "must be >= 0 epochs", self.warmup)

    def draw(self, steps: Steps) -> Tensors:
        return {"warm": torch.full((steps.number,), min((steps.epoch + 1) / self.warmup, 1.0) if self.warmup else 1.0)}

    def terms(self, seen: StepInput) -> Metrics:
        logits = seen.teacher.logits, seen.student.logits
        value = decoupled(*logits, seen.y, self.alpha, self.beta, self.temperature).mean()
        return {"dkd": seen.batch.warm.to(value.dtype) * value}
