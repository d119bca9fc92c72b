"""The distance of a batch from the running statistics of a BatchNorm layer (DeepInversion, Yin et al., CVPR 2020; used by DENSE)."""

from torch import Tensor


def statistics_distance(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:  # [B, C, ...], [C], [C] -> []
    """``||var(x) - variance||_2 + ||mean(x) - mean||_2``, with the biased variance. It is a property of the whole batch, so a scalar.

    Args:
        x: the input of the BatchNorm layer.
        mean: the layer's running mean.
        variance: the layer's running variance.
    """
    dims = [dim for dim in range(x.dim()) if dim != 1]
    return (x.var(dims, correction=0) - variance).norm() + (x.mean(dims) - mean).norm()
