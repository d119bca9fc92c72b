"""The length of the path of an optimizer in parameter space (Wang et al. 2021).

Of two trainings with the same accuracy, that with the shorter path had the easier function to learn.
"""

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.types import Tensors


def parameter_norm(tensors: Tensors) -> Tensor:  # -> []
    """The Euclidean norm of all entries of all tensors, in float64."""
    return torch.stack([value.detach().double().square().sum() for value in tensors.values()]).sum().sqrt()


def parameter_distance(before: Tensors, after: Tensors) -> Tensor:  # -> []
    """``||after - before||_2`` over all parameters, in float64.

    Raises:
        ConfigError: names or shapes of the parameters differ.
    """
    different = sorted(before.keys() ^ after.keys()) or [key for key in before if before[key].shape != after[key].shape]
    require(not different, "parameter_distance", "must be between parameters of the same names and shapes", different)
    return parameter_norm({key: after[key].double() - value.double() for key, value in before.items()})


def parameter_path_length(length: float, before: Tensors, after: Tensors, first: Tensors) -> float:
    """``length + ||after - before||_2 / ||first||_2``. Summed over epochs this is ``sum_k ||w_k - w_{k-1}||_2 / ||w_0||_2``.

    The text of the paper was not available; this is its cumulative weight distance as other papers describe it. It includes parameters and
    no buffers.

    Args:
        length: the sum so far, >= 0.
        before: w_{k-1}.
        after: w_k.
        first: w_0, not all zero.

    Raises:
        ConfigError: w_0 is zero, or names or shapes of the parameters differ.
    """
    norm = parameter_norm(first).item()
    require(norm > 0, "parameter_path_length", "must begin at parameters that are not all zero", norm)
    return length + parameter_distance(before, after).item() / norm
