"""DKD: distillation of logits with separate weights for the target class and the other classes."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedkd.distillation.methods.base import Distiller, EpochSteps, StepInput, check_temperature, check_weight
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

    needs_teacher: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "beta"

    alpha: float
    beta: float
    temperature: float
    warmup: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self.alpha, "alpha")
        check_weight(self.beta, "beta")
        check_temperature(self.temperature)
        require(self.warmup >= 0, "warmup", "must be >= 0 epochs", self.warmup)

    def draw(self, steps: EpochSteps) -> Tensors:
        """``warm``: the factor w(e) for every step."""
        return {"warm": torch.full((steps.number,), min((steps.epoch + 1) / self.warmup, 1.0) if self.warmup else 1.0)}

    def terms(self, step: StepInput) -> Metrics:
        """``dkd``: both divergences, weighted."""
        logits = step.teacher.logits, step.student.logits
        value = decoupled(*logits, step.y, self.alpha, self.beta, self.temperature).mean()
        return {"dkd": step.batch.warm.to(value.dtype) * value}
