"""The squared distance of features of hidden layers (FitNets)."""

from torch import Tensor

from fedkd.errors import require
from fedkd.tensor_ops import flatten_examples


def hint(teacher: Tensor, student: Tensor) -> Tensor:  # [B, ...], [B, ...] -> [B]
    """``mean_d (t_d - s_d)^2`` per example over all entries of the features (Romero et al., ICLR 2015).

    Deviation from the paper, as in RepDistiller: the mean over the entries replaces half of their sum, so that a weight does not depend on
    the size of the features. The regressor that gives the student's features the teacher's shape belongs to the distillation method.

    Args:
        teacher: features, detached unless the teacher is trained too.
        student: features of the same shape.

    Raises:
        ConfigError: the shapes differ.
    """
    require(teacher.shape == student.shape, "hint", f"must compare features of one shape, {tuple(teacher.shape)}", tuple(student.shape))
    return (flatten_examples(teacher) - flatten_examples(student)).square().mean(-1)
