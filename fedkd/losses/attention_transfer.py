"""Attention transfer: the student imitates where in an image the teacher's features are large."""

from torch import Tensor
from torch.nn import functional as F

from fedkd.errors import require
from fedkd.tensor_ops import at_least_float32, unit_rows


def attention_transfer(teacher: Tensor, student: Tensor, power: float = 2.0) -> Tensor:  # [B, channels, H, W] x 2 -> [B]
    """``mean_hw (a(F_t) - a(F_s))^2`` per example, where a is the attention map (Zagoruyko and Komodakis, ICLR 2017).

    The numbers of channels may differ. Larger feature maps are average-pooled to the smaller height and width first. A positive factor of
    an example's features does not change the loss.

    Deviations from the paper, as in RepDistiller: the mean of squares over the map replaces the norm of the difference, so that the
    paper's weights do not apply; ``|F|^p`` is averaged over channels and not summed, which the normalization cancels.

    Args:
        teacher: features of a stage, detached unless the teacher is trained too.
        student: features of a stage.
        power: p >= 1; 2 in the paper's experiments.

    Raises:
        ConfigError: ``power`` is less than 1.
    """
    require(power >= 1, "power", "must be >= 1 (2 is the paper's)", power)
    size = min(teacher.shape[-2], student.shape[-2]), min(teacher.shape[-1], student.shape[-1])
    teacher_map, student_map = (attention_map(pool_to(features, size), power) for features in (teacher, student))
    return (teacher_map - student_map).square().mean(-1)


def attention_map(features: Tensor, power: float = 2.0) -> Tensor:  # [B, channels, H, W] -> [B, H * W]
    """``flatten(mean_c |F_c|^p)``, divided by its Euclidean norm: one map per example. A map of zeros stays zero."""
    return unit_rows(at_least_float32(features).abs().pow(power).mean(1).flatten(1))


def pool_to(features: Tensor, size: tuple[int, int]) -> Tensor:  # [B, channels, H, W] -> [B, channels, h, w]
    """Average pooling to ``size`` = (h, w); the features themselves if they have this size."""
    return features if features.shape[-2:] == size else F.adaptive_avg_pool2d(at_least_float32(features), size)
