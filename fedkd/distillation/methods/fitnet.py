"""FitNet: a regressor maps the student's features of one stage to the teacher's (hints)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fedkd.distillation.methods.base import Distiller, StepInput, TeacherStudent, check_feature_maps, check_weight
from fedkd.errors import require
from fedkd.losses.hint import hint
from fedkd.types import Metrics


class Regressor(nn.Module):
    """Convolution, BatchNorm and optional ReLU, from the shape of one feature map to that of another."""

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
        """The mapped features."""
        return self.layers(x)


@dataclass(kw_only=True)
class FitNet(Distiller):
    """Loss: ``ce CE(z_s, y) + weight mean (F_t - r(F_s))^2``.

    F_s and F_t are feature maps of one stage, and r is a regressor that is trained along with the student.

    Source:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets: Hints for thin deep nets, ICLR 2015.
        Public code: HobbitLong/RepDistiller @ b84f547.

    Args:
        weight: Weight of the hint, >= 0.
        stage: Stage whose feature maps are compared. -1 is the last.
        relu: End the regressor in a ReLU. The regressor then cannot reach negative values of the teacher.

    Deviations:
        - From the paper: student and regressor are trained together, as in the public recipes. The paper trains in two stages.
    """

    needs_teacher: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "weight"

    weight: float
    stage: int
    relu: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self.weight)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """Both networks need feature maps, and a convolution must be able to map the student's to the teacher's size."""
        check_feature_maps(pair)
        student, teacher = (sizes.stage(self.stage, "stage") for sizes in pair.sizes)
        fits = 2 * student[1] == teacher[1] or student[1] == 2 * teacher[1] or student[1] >= teacher[1]
        require(fits, "stage", f"must have a student's map that a convolution can bring to {tuple(teacher)}", tuple(student))

    def modules(self, pair: TeacherStudent) -> nn.Module:
        """The regressor."""
        student, teacher = (sizes.stage(self.stage, "stage") for sizes in pair.sizes)
        return Regressor(student, teacher, self.relu)

    def terms(self, step: StepInput) -> Metrics:
        """``hint``: the weighted distance of the mapped features."""
        mapped = step.method(step.student.stages[self.stage])
        return {"hint": self.weight * hint(step.teacher.stages[self.stage], mapped).mean()}
