"""Weighted sum: several distillation methods at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from fedkd.distillation.methods.base import Distiller, StepInput, Steps, TeacherStudent, weight
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

    taught: ClassVar[bool] = True

    parts: Mapping[str, Distiller]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.parts) > 0, "parts", "must name one method or more", dict(self.parts))
        require(
            set(self.parts) == set(self.weights), "weights", f"must give one number for each of {sorted(self.parts)}", dict(self.weights)
        )
        for name, one in self.parts.items():
            weight(self.weights[name], f"weights.{name}")
            require(one.ce == 0, f"parts.{name}.ce", "must be 0: the sum has the cross-entropy", one.ce)
            adds = type(one).loss is Distiller.loss and type(one).learner is Distiller.learner
            require(adds, f"parts.{name}", "must be a method that adds terms to a student's answers", type(one).__name__)
        prepared = {name: list(one.preparation()) for name, one in self.parts.items() if one.preparation()}
        require(len(prepared) < 2, "parts", "must have one teacher: at most one of them prepares it (teaching)", prepared)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """The checks of all methods."""
        for one in self.parts.values():
            one.check(pair, batch_size)

    def preparation(self) -> Sequence[str]:
        """The preparation of the one method that has one."""
        return next((one.preparation() for one in self.parts.values() if one.preparation()), ())

    def modules(self, pair: TeacherStudent) -> nn.Module:
        """The modules of all methods by name."""
        return nn.ModuleDict({name: one.modules(pair) or nn.Module() for name, one in self.parts.items()})

    def lr_of(self, name: str, epoch: int) -> float:
        """The factor that the parameter's own method gives it."""
        _, mine, rest = (*name.split(".", 2), "", "")[:3]
        return self.parts[mine].lr_of(f"method.{rest}", epoch) if name.startswith("method.") else 1.0

    def forgets(self, epoch: int) -> bool:
        """Where one of the methods resets the optimizer."""
        return any(one.forgets(epoch) for one in self.parts.values())

    def draw(self, steps: Steps) -> Tensors:
        """The draws of all methods, with the method's name as prefix."""
        return {
            f"{name}/{key}": value
            for name, one in self.parts.items()
            for key, value in one.draw(replace(steps, seed=steps.seed / name)).items()
        }

    def terms(self, seen: StepInput) -> Metrics:
        """The terms of all methods, weighted, with the method's name as prefix."""
        terms: Metrics = {}
        for name, one in self.parts.items():
            drawn = {key.removeprefix(f"{name}/"): value for key, value in seen.batch.drawn.items() if key.startswith(f"{name}/")}
            mine = replace(seen, method=seen.method.submodule(name), batch=Batch(seen.batch.x, seen.batch.y, drawn))
            terms |= {f"{name}_{key}": self.weights[name] * value for key, value in one.terms(mine).items()}
        return terms
