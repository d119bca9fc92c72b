"""The distance of features: what the first losses on hidden layers were (FitNets)."""

from torch import Tensor

from fedkd.errors import require
from fedkd.tensor_ops import flatten_examples


def hint(teacher: Tensor, student: Tensor) -> Tensor:  # [B, ...], [B, ...] -> [B]
    """``mean_d (t_d - s_d)^2`` per example, over all entries of a feature (Romero et al., ICLR 2015).

    Deviations from the paper: the mean of entries stands for half their sum, as in RepDistiller, so that a weight does not depend on
    the size of a map. The regressor that gives the student's features the teacher's shape is the distiller's, not the loss's.

    Args:
        teacher: features; detach them where the teacher is not to learn.
        student: features of the same shape.
    """
    require(teacher.shape == student.shape, "hint", f"must compare features of one shape, {tuple(teacher.shape)}", tuple(student.shape))
    return (flatten_examples(teacher) - flatten_examples(student)).square().mean(-1)
