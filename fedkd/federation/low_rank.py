"""Compression of models by singular values: tensors travel as two factors of low rank."""

import torch
from torch import Tensor

from fedkd.types import Tensors

LEFT, RIGHT = "/left", "/right"
"""Ends of the names of the two factors of a tensor."""


def compress(tensors: Tensors, energy: float) -> Tensors:
    """Tensors as factors of low rank, where these are smaller than the tensor.

    A tensor M of two or more dimensions is a stack of matrices [..., m, n], one for each kernel of a convolution. Their rank r is the least
    with ``sum_{i <= r} s_i^2 > energy sum_i s_i^2``, summed over all matrices of M. Where no smaller rank has enough energy, M is sent
    unchanged.

    Args:
        tensors: tensors by name. Those with fewer than two dimensions, and integers, are not compressed.
        energy: share of the squared singular values to keep, in (0, 1].

    Returns:
        ``<name>/left`` [..., m, r], which holds the singular values, and ``<name>/right`` [..., r, n]. Where the factors would be larger
        than the tensor, ``<name>`` is their product.
    """
    sent: Tensors = {}
    for name, value in tensors.items():
        factors = low_rank_factors(value, energy) if value.dim() > 1 and value.is_floating_point() else None
        if factors is None:
            sent[name] = value
        elif sum(factor.numel() for factor in factors) < value.numel():
            sent[name + LEFT], sent[name + RIGHT] = factors
        else:
            sent[name] = factors[0] @ factors[1]
    return sent


def decompress(sent: Tensors) -> Tensors:
    """The tensors that :func:`compress` has made these from, with a lower rank."""
    tensors: Tensors = {}
    for name, value in sent.items():
        if name.endswith(LEFT):
            whole = name.removesuffix(LEFT)
            tensors[whole] = value @ sent[whole + RIGHT]
        elif not name.endswith(RIGHT):
            tensors[name] = value
    return tensors


def low_rank_factors(value: Tensor, energy: float) -> tuple[Tensor, Tensor] | None:
    """Two factors of the least rank with the given energy; None if that is the full rank.

    Args:
        value: matrices [..., m, n].
        energy: in (0, 1].
    """
    left, values, right = torch.linalg.svd(value, full_matrices=False)
    squares = values.square().reshape(-1, values.shape[-1]).sum(0)
    enough = squares.cumsum(0) > energy * squares.sum()
    rank = int(enough.to(torch.int64).argmax()) + 1 if bool(enough.any()) else len(squares)
    if rank == len(squares):
        return None
    return (left * values.unsqueeze(-2))[..., :rank].contiguous(), right[..., :rank, :].contiguous()
