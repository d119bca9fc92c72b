"""DKD: distillation of logits with separate weights for the target class and the other classes."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedkd.distillation.methods.base import Distiller, StepInput, Steps, temperature, weight
from fedkd.errors import require
from fedkd.losses.decoupled_kl import decoupled
from fedkd.types import Metrics, Tensors


@dataclass(kw_only=True)
class DKD(Distiller):
    """Loss: ``ce CE(z_s, y) + w(e) T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s))``.

    b are the probabilities of the target class and of all others together, at temperature T. q are the probabilities among the others.
    ``w(e) = min(e / warmup, 1)`` in epoch e, counted from 1.

    Source:
        Zhao, Cui, Song, Qiu, Liang: Decoupled knowledge distillation, CVPR 2022.
        Public code: megvii-research/mdistiller @ a08d46f.

    Args:
        alpha: Weight of the target class, >= 0.
        beta: Weight of the other classes, >= 0. The paper tunes it by pair of networks, from 2 to 8 on CIFAR-100.
        temperature: Temperature T, > 0.
        warmup: Epochs until both terms have their full weight, >= 0.

    Deviations:
        - From the public code: the target's logit is left out of q. The public code lowers it by 1000.
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
        """``warm``: the factor w(e) for every step."""
        return {"warm": torch.full((steps.number,), min((steps.epoch + 1) / self.warmup, 1.0) if self.warmup else 1.0)}

    def terms(self, seen: StepInput) -> Metrics:
        """``dkd``: both divergences, weighted."""
        logits = seen.teacher.logits, seen.student.logits
        value = decoupled(*logits, seen.y, self.alpha, self.beta, self.temperature).mean()
        return {"dkd": seen.batch.warm.to(value.dtype) * value}
