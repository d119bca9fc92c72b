"""Tensor operations that several losses and metrics share: one-hot labels, row norms, and Gram matrices."""

from collections.abc import Mapping

import torch
from torch import Tensor

MIN_NORM = 1e-12
"""Rows whose length is at most this count as zero rows."""


def one_hot(y: Tensor, num_classes: int) -> Tensor:  # [...] -> [..., C]
    """One-hot labels, int64. Unlike ``F.one_hot``, it does not inspect the values of ``y``, so that it works inside ``torch.vmap``."""
    return (y[..., None] == torch.arange(num_classes, device=y.device)).long()


def at_least_float32(x: Tensor) -> Tensor:
    """``x``, converted to float32 if it has half precision: sums and logarithms in half precision keep two or three digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def flatten_examples(x: Tensor) -> Tensor:  # [B, ...] -> [B, D]
    """One row per example, in float32 or float64."""
    return at_least_float32(x).flatten(1)


def unit_rows(x: Tensor, eps: float = 0.0) -> Tensor:  # [B, D] -> [B, D]
    """``x_i / (||x_i||_2 + eps)``. A zero row stays zero and receives no gradient, as it has no direction."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    has_direction = length > MIN_NORM
    return torch.where(has_direction, x / torch.where(has_direction, length + eps, 1.0), 0.0)


def gram_matrix(x: Tensor) -> Tensor:  # [B, D] -> [B, B]
    """The inner products ``x_i . x_j``, in the precision of ``x`` even inside autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ x.mT


def infinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinity."""
    return [name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]


def channels_last(tensor: Tensor) -> Tensor:
    """Images and kernels (four dimensions) in the layout channels last, in which convolutions are fast; other tensors unchanged."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
