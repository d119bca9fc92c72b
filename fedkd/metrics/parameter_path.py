"""How far an optimizer travels: of two ways to the same accuracy, the shorter had the easier mapping to learn (Wang et al., 2021)."""

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.types import Tensors


def parameter_norm(tensors: Tensors) -> Tensor:  # -> []
    """``||w||_2`` of all entries together, in float64."""
    return torch.stack([value.detach().double().square().sum() for value in tensors.values()]).sum().sqrt()


def parameter_distance(before: Tensors, after: Tensors) -> Tensor:  # -> []
    """``||after - before||_2`` over all parameters, in float64.

    Raises:
        ConfigError: they are not parameters of one network.
    """
    unlike = sorted(before.keys() ^ after.keys()) or [key for key in before if before[key].shape != after[key].shape]
    require(not unlike, "distance", "must be between parameters of the same names and shapes", unlike)
    return parameter_norm({key: after[key].double() - value.double() for key, value in before.items()})


def parameter_path_length(length: float, before: Tensors, after: Tensors, first: Tensors) -> float:
    """``length + ||after - before||_2 / ||first||_2``: summed over epochs, ``sum_k ||w_k - w_{k-1}||_2 / ||w_0||_2``.

    The paper's text was not at hand: this is its cumulative weight distance as others tell it. Parameters alone count, not buffers.

    Args:
        length: the sum so far.
        before: w_{k-1}.
        after: w_k.
        first: w_0, not all zero.
    """
    whole = parameter_norm(first).item()
    require(whole > 0, "travel", "must begin at parameters that are not all zero", whole)
    return length + parameter_distance(before, after).item() / whole
