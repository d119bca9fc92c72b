"""Hints: the student's map of one stage, through a regressor, is to equal the teacher's."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fedkd.distillation.methods.base import Distiller, StepInput, TeacherStudent, maps, weight
from fedkd.errors import require
from fedkd.losses.hint import hint
from fedkd.types import Metrics


class Regressor(nn.Module):
    """Convolution, BatchNorm and, if asked, ReLU, from one map's shape to another's."""

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...], relu: bool) -> None:
        super().__init__()
        (channels, height, _), (wanted, size, _) = before, after
        if height == 2 * size:
            convolution: nn.Module = nn.Conv2d(channels, wanted, 3, 2, 1)
        elif 2 * height == size:
            convolution = nn.ConvTranspose2d(channels, wanted, 4, 2, 1)
        else:
            convolution = nn.Conv2d(channels, wanted, 1 + height - size)
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(wanted), *([nn.ReLU()] if relu else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@dataclass(kw_only=True)
class FitNet(Distiller):
    """``ce CE(z_s, y) + weight mean (F_t - r(F_s))^2``, F the maps of one stage, r a regressor that learns along.

    Romero et al.: FitNets: Hints for thin deep nets, ICLR 2015, trained jointly as public recipes do (the paper: in two stages). The
    regressor ends in a ReLU there: negative values of the teacher are then out of its reach (``relu: false`` lets them in).

    Args:
        weight: >= 0, of the hint.
        stage: whose map; -1 is the last.
        relu: at the regressor's end.
    """

    taught: ClassVar[bool] = True
    scale: ClassVar[str | None] = "weight"

    weight: float
    stage: int
    relu: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        weight(self.weight)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        maps(pair)
        student, teacher = (sizes.stage(self.stage, "stage") for sizes in pair.sizes)
        fits = 2 * student[1] == teacher[1] or student[1] == 2 * teacher[1] or student[1] >= teacher[1]
        require(fits, "stage", f"must have a student's map that a convolution can bring to {tuple(teacher)}", tuple(student))

    def modules(self, pair: TeacherStudent) -> nn.Module:
        student, teacher = (sizes.stage(self.stage, "stage") for sizes in pair.sizes)
        return Regressor(student, teacher, self.relu)

    def terms(self, seen: StepInput) -> Metrics:
        mapped = seen.method(seen.student.stages[self.stage])
        return {"hint": self.weight * hint(seen.teacher.stages[self.stage], mapped).mean()}
