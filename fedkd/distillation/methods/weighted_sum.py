"""Weighted sum: several distillation methods at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from fedkd.distillation.methods.base import Distiller, EpochSteps, StepInput, TeacherStudent, check_weight
from fedkd.errors import require
from fedkd.training.batch import Batch
from fedkd.types import Metrics, Tensors


@dataclass(kw_only=True)
class WeightedSum(Distiller):
    """Loss: ``ce CE(z_s, y) + sum_m weights_m terms_m``.

    terms_m are the terms of method m, with the weights that the method itself gives them.

    Source:
        None: a combination of other methods.

    Args:
        parts: The methods by name. Each must have ``ce=0``, because the sum has the cross-entropy.
        weights: Weight of each method by name, >= 0.

    Deviations:
        - Only methods that add terms to the student's loss can be combined. HSAKD, KDDG and the online ensemble cannot.
    """

    needs_teacher: ClassVar[bool] = True

    parts: Mapping[str, Distiller]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.parts) > 0, "parts", "must name one method or more", dict(self.parts))
        require(
            set(self.parts) == set(self.weights), "weights", f"must give one number for each of {sorted(self.parts)}", dict(self.weights)
        )
        for name, method in self.parts.items():
            check_weight(self.weights[name], f"weights.{name}")
            require(method.ce == 0, f"parts.{name}.ce", "must be 0: the sum has the cross-entropy", method.ce)
            adds = type(method).loss is Distiller.loss and type(method).learner is Distiller.learner
            require(adds, f"parts.{name}", "must be a method that adds terms to a student's loss", type(method).__name__)
        prepared = {name: list(method.teacher_training()) for name, method in self.parts.items() if method.teacher_training()}
        require(len(prepared) < 2, "parts", "must have one teacher: at most one of them prepares it (teaching)", prepared)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """The checks of all methods."""
        for method in self.parts.values():
            method.check(pair, batch_size)

    def teacher_training(self) -> Sequence[str]:
        """The overrides of the one method that trains the teacher."""
        return next((method.teacher_training() for method in self.parts.values() if method.teacher_training()), ())

    def modules(self, pair: TeacherStudent) -> nn.Module:
        """The modules of all methods by name."""
        return nn.ModuleDict({name: method.modules(pair) or nn.Module() for name, method in self.parts.items()})

    def lr_factor_of(self, name: str, epoch: int) -> float:
        """The factor that the parameter's own method gives it."""
        _, mine, rest = (*name.split(".", 2), "", "")[:3]
        return self.parts[mine].lr_factor_of(f"method.{rest}", epoch) if name.startswith("method.") else 1.0

    def resets_optimizer(self, epoch: int) -> bool:
        """Whether one of the methods resets the optimizer."""
        return any(method.resets_optimizer(epoch) for method in self.parts.values())

    def draw(self, steps: EpochSteps) -> Tensors:
        """The draws of all methods, with the method's name as prefix."""
        return {
            f"{name}/{key}": value
            for name, method in self.parts.items()
            for key, value in method.draw(replace(steps, seed=steps.seed / name)).items()
        }

    def terms(self, step: StepInput) -> Metrics:
        """The terms of all methods, weighted, with the method's name as prefix."""
        terms: Metrics = {}
        for name, method in self.parts.items():
            drawn = {key.removeprefix(f"{name}/"): value for key, value in step.batch.drawn.items() if key.startswith(f"{name}/")}
            mine = replace(step, method=step.method.submodule(name), batch=Batch(step.batch.x, step.batch.y, drawn))
            terms |= {f"{name}_{key}": self.weights[name] * value for key, value in method.terms(mine).items()}
        return terms
