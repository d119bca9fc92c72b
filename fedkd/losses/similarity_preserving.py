"""Similarity-preserving distillation: pairs of examples that are similar for the teacher shall be similar for the student."""

from torch import Tensor

from fedkd.tensor_ops import flatten_examples, gram_matrix, unit_rows


def similarity_preserving(teacher: Tensor, student: Tensor) -> Tensor:  # [B, ...], [B, ...] -> [B]
    """``1/B sum_j (G_t - G_s)_ij^2`` per example. The mean over the batch is the paper's ``1/B^2 ||G_t - G_s||_F^2``.

    Tung and Mori, ICCV 2019. The shapes of the two features may differ. A common factor of all examples and rotations of the features do
    not change the loss; a factor of one example does. It is at most ``4 / B``, and ``2 / B`` for features >= 0. It depends on the batch
    size, as doubling every example halves it, so a published weight applies to its batch size (3000 for 64).

    Deviation: a row of zeros receives no gradient. Dividing by its norm, bounded below by 1e-12, would multiply the gradient by 1e12.

    Args:
        teacher: features before or after ReLU, detached unless the teacher is trained too.
        student: features.
    """
    return (normalized_similarities(teacher) - normalized_similarities(student)).square().mean(-1)


def normalized_similarities(features: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``G_i = (Q Q^T)_i / ||(Q Q^T)_i||_2`` with one row of Q per example. The row of an example with zero features is zero."""
    return unit_rows(gram_matrix(flatten_examples(features)))
