"""Operations that several losses share: one-hot labels, row norms, and Gram matrices."""

import torch
from torch import Tensor


def one_hot(y: Tensor, num_classes: int) -> Tensor:  # [...] -> [..., C]
    """Integers 0 and 1. ``F.one_hot`` looks at the values of ``y``, which a loss that trains many clients at once cannot."""
    return (y[..., None] == torch.arange(num_classes, device=y.device)).long()


MIN_NORM = 1e-12
"""Rows that are no longer than this count as rows of zeros."""


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in 32 bits at least: sums and logarithms of half precision keep two or three digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def flatten_examples(x: Tensor) -> Tensor:  # [B, ...] -> [B, D]
    """One row an example, in 32 bits at least."""
    return at_least_float32(x).flatten(1)


def unit_rows(x: Tensor, eps: float = 0.0) -> Tensor:  # [B, D] -> [B, D]
    """``x_i / (||x_i||_2 + eps)``. A row of zeros stays one and gets no gradient: it has no direction."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    seen = length > MIN_NORM
    return torch.where(seen, x / torch.where(seen, length + eps, 1.0), 0.0)


def gram_matrix(x: Tensor) -> Tensor:  # [B, D] -> [B, B]
    """``x_i . x_j``, in the precision of ``x`` also where other products are cast to a lower one."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ x.mT
