"""Similarity-preserving distillation: what is alike to the teacher is to be alike to the student."""

from torch import Tensor

from fedkd.tensor_ops import flatten_examples, gram_matrix, unit_rows


def normalized_similarities(features: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``G_i = (Q Q^T)_i / ||(Q Q^T)_i||_2``, Q one row an example; an example whose features are zero has a row of zeros."""
    return unit_rows(gram_matrix(flatten_examples(features)))


def similarity_preserving(teacher: Tensor, student: Tensor) -> Tensor:  # [B, ...], [B, ...] -> [B]
    """``1/B sum_j (G_t - G_s)_ij^2``, whose mean over the batch is the paper's ``1/B^2 ||G_t - G_s||_F^2`` (Tung and Mori, ICCV 2019).

    Widths and sizes of the two may differ. Blind to a factor common to all examples and to rotations of the features, not to a factor
    of one example. At most ``4 / B``, ``2 / B`` for features >= 0. It depends on the size of the batch: each example twice gives half
    of it, so that a published weight goes with its batch (3000 with 64).

    Deviations: a row of zeros passes no gradient, where dividing by its length, bounded at 1e-12, would multiply it by 1e12.

    Args:
        teacher: features, before any rectifier or after; detach them where the teacher is not to learn.
        student: features.
    """
    return (normalized_similarities(teacher) - normalized_similarities(student)).square().mean(-1)
