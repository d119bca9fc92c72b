"""How far a batch is from the statistics that a BatchNorm layer has kept (DeepInversion; used by DENSE)."""

from torch import Tensor


def statistics_distance(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:  # [B, C, ...], [C], [C] -> []
    """``||var(x) - variance||_2 + ||mean(x) - mean||_2``, x what enters the layer, var with divisor n.

    A property of the batch as a whole, hence a scalar.
    """
    over = [dim for dim in range(x.dim()) if dim != 1]
    return (x.var(over, correction=0) - variance).norm() + (x.mean(over) - mean).norm()
