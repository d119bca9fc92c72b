"""Attention transfer: where a network looks, not what it sees there."""

from torch import Tensor
from torch.nn import functional as F

from fedkd.errors import require
from fedkd.tensor_ops import unit_rows, at_least_float32


def attention_map(features: Tensor, power: float = 2.0) -> Tensor:  # [B, channels, H, W] -> [B, H * W]
    """``normalise_2(flatten(mean_c |F_c|^p))``: one map an example, of length one; a map of zeros stays one."""
    return unit_rows(at_least_float32(features).abs().pow(power).mean(1).flatten(1))


def attention_transfer(teacher: Tensor, student: Tensor, power: float = 2.0) -> Tensor:  # [B, channels, H, W] x 2 -> [B]
    """``mean_hw (a(F_t) - a(F_s))^2`` per example, a the attention map (Zagoruyko and Komodakis, ICLR 2017).

    Channels may differ in number; the larger features are average-pooled to the smaller ones' height and width before the maps
    are made. Blind to a positive factor of any example's features.

    Deviations from the paper, as in RepDistiller: the mean of squares over the map where the paper has the length of the difference,
    so that the paper's weights do not carry over; ``|F|^p`` is averaged over channels, not summed, which normalising undoes.

    Args:
        teacher: a stage's maps; detach them where the teacher is not to learn.
        student: a stage's maps.
        power: p >= 1; 2 in the paper's experiments.
    """
    require(power >= 1, "power", "must be >= 1 (2 is the paper's)", power)
    size = tuple(map(min, teacher.shape[-2:], student.shape[-2:]))
    one, other = (attention_map(pool_to(features, size), power) for features in (teacher, student))
    return (one - other).square().mean(-1)


def pool_to(features: Tensor, size: tuple[int, int]) -> Tensor:  # [B, channels, H, W] -> [B, channels, h, w]
    """Averages over patches, or the features themselves where they have that size."""
    return features if features.shape[-2:] == size else F.adaptive_avg_pool2d(at_least_float32(features), size)
