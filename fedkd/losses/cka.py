"""Centered kernel alignment (CKA): the similarity of two representations of the same examples, independent of their widths.

CKA is a measure with a gradient. Detach its arguments where it is only reported. Clamp the unbiased estimate to 0..1, as it may exceed
the range a little.
"""

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.tensor_ops import flatten_examples, gram_matrix


def unbiased_cka(x: Tensor, y: Tensor) -> Tensor:  # [n, ...], [n, ...] -> []
    """Linear CKA of one batch by :func:`unbiased_hsic`.

    It is 1 for representations that differ by a rotation, a factor, and a shift, and near 0 for independent ones of any width.

    Raises:
        ConfigError: n <= 3.
    """
    return cka(hsic_values(x, y))


def biased_cka(x: Tensor, y: Tensor) -> Tensor:  # [n, ...], [n, ...] -> []
    """``sum KcLc / (||Kc||_F ||Lc||_F)`` of centered Gram matrices (Kornblith et al., ICML 2019).

    It approaches 1 for features that are wider than the batch, whether they are related or not.
    """
    gram_x, gram_y = centered_gram(x), centered_gram(y)
    return cka(torch.stack([(gram_x * gram_y).sum(), gram_x.square().sum(), gram_y.square().sum()]))


def hsic_values(x: Tensor, y: Tensor) -> Tensor:  # [n, ...], [n, ...] -> [3]
    """``HSIC(K, L), HSIC(K, K), HSIC(L, L)`` for the linear kernels K and L of one batch.

    For several batches, average the values and apply :func:`cka` to the means.

    Raises:
        ConfigError: n <= 3.
    """
    gram_x, gram_y = centered_gram(x), centered_gram(y)
    return torch.stack([unbiased_hsic(gram_x, gram_y), unbiased_hsic(gram_x, gram_x), unbiased_hsic(gram_y, gram_y)])


def cka(values: Tensor) -> Tensor:  # [..., 3] -> [...]
    """``v_0 / (sqrt(v_1) sqrt(v_2))``; 0 if one of the representations is constant."""
    cross, *variances = values.unbind(-1)
    lengths = [torch.where(value > 0, value, 1.0).sqrt() for value in variances]  # where a variance is zero, the numerator is zero too
    return cross / (lengths[0] * lengths[1])


def unbiased_hsic(gram_x: Tensor, gram_y: Tensor) -> Tensor:  # [n, n], [n, n] -> []
    """``1/(n(n-3)) (tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1)`` for Gram matrices K and L with diagonals set to zero.

    The unbiased estimate of the Hilbert-Schmidt independence criterion (Song et al., JMLR 2012; for minibatches Nguyen, Raghu and
    Kornblith, ICLR 2021). It is computed as a product of centered matrices, which is equal and loses fewer digits.

    Raises:
        ConfigError: n <= 3.
    """
    n = gram_x.shape[-1]
    return (center_off_diagonal(gram_x) * center_off_diagonal(gram_y)).sum() / (n * (n - 3))


def center_off_diagonal(k: Tensor) -> Tensor:  # [n, n] -> [n, n]
    """A symmetric matrix with zero diagonal, centered so that every row has sum zero.

    Raises:
        ConfigError: n <= 3.
    """
    n = k.shape[-1]
    require(n > 3, "batch_size", "must be > 3 for the unbiased HSIC, which divides by n - 3", n)
    index = torch.arange(n, device=k.device)
    is_diagonal = index[:, None] == index
    k = torch.where(is_diagonal, 0.0, k)
    rows = k.sum(-1) / (n - 2)
    return torch.where(is_diagonal, 0.0, k - rows[:, None] - rows + rows.sum() / (n - 1))


def centered_gram(x: Tensor) -> Tensor:  # [n, ...] -> [n, n]
    """The Gram matrix of centered features. The mean changes no measure of this module, but it would increase rounding errors."""
    x = flatten_examples(x)
    return gram_matrix(x - x.mean(0))
