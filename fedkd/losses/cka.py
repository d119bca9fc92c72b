"""Centred kernel alignment: how alike two networks' representations of the same examples are, whatever their widths.

A measure, with a gradient; detach its arguments where it is only to be read, and clamp the unbiased one, which may leave 0..1 a little.
"""

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.tensor_ops import flatten_examples, gram_matrix


def center_off_diagonal(k: Tensor) -> Tensor:  # [n, n] -> [n, n]
    """The symmetric ``k`` without its diagonal, less what rows and columns have in common: every row's sum is zero."""
    n = k.shape[-1]
    require(n > 3, "batch_size", "must be > 3 for the unbiased HSIC, which divides by n - 3", n)
    index = torch.arange(n, device=k.device)
    itself = index[:, None] == index
    k = torch.where(itself, 0.0, k)
    rows = k.sum(-1) / (n - 2)
    return torch.where(itself, 0.0, k - rows[:, None] - rows + rows.sum() / (n - 1))


def unbiased_hsic(k: Tensor, l: Tensor) -> Tensor:  # [n, n], [n, n] -> []
    """``1/(n(n-3)) (tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1)`` of Gram matrices whose diagonals are set to zero.

    The unbiased estimate of the Hilbert-Schmidt independence criterion (Song et al., JMLR 2012; in minibatches Nguyen, Raghu and
    Kornblith, ICLR 2021), summed as a product of centred matrices, which is the same and loses fewer digits.

    Raises:
        ConfigError: n <= 3.
    """
    n = k.shape[-1]
    return (center_off_diagonal(k) * center_off_diagonal(l)).sum() / (n * (n - 3))


def hsic_values(x: Tensor, y: Tensor) -> Tensor:  # [n, ...], [n, ...] -> [3]
    """``HSIC1(K, L), HSIC1(K, K), HSIC1(L, L)`` of linear kernels K, L of one minibatch: mean over minibatches, then :func:`cka`."""
    k, l = (centered_gram(features) for features in (x, y))
    return torch.stack([unbiased_hsic(k, l), unbiased_hsic(k, k), unbiased_hsic(l, l)])


def cka(values: Tensor) -> Tensor:  # [..., 3] -> [...]
    """``v_0 / (sqrt(v_1) sqrt(v_2))``; 0 where one of the representations is constant."""
    cross, *own = values.unbind(-1)
    lengths = [torch.where(value > 0, value, 1.0).sqrt() for value in own]  # where one is zero, so is what stands above
    return cross / (lengths[0] * lengths[1])


def unbiased_cka(x: Tensor, y: Tensor) -> Tensor:  # [n, ...], [n, ...] -> []
    """Linear CKA of one minibatch by :func:`hsic1`: 1 for representations that differ by rotation, factor and shift, near 0 for
    independent ones whatever their width.

    Raises:
        ConfigError: n <= 3.
    """
    return cka(hsic_values(x, y))


def biased_cka(x: Tensor, y: Tensor) -> Tensor:  # [n, ...], [n, ...] -> []
    """``sum KcLc / (||Kc||_F ||Lc||_F)`` of centred Gram matrices (Kornblith et al., ICML 2019): towards 1 for features wider than
    the batch, related or not."""
    k, l = (centered_gram(features) for features in (x, y))
    return cka(torch.stack([(k * l).sum(), k.square().sum(), l.square().sum()]))


def centered_gram(x: Tensor) -> Tensor:  # [n, ...] -> [n, n]
    """Products of features less their mean; no measure here sees the mean, and rounding does."""
    x = flatten_examples(x)
    return gram_matrix(x - x.mean(0))
