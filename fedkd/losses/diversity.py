"""The diversity term of generators (Mao et al. 2019, in the discriminator-free form of FedGen's public code)."""

import torch
from torch import Tensor


def noise_distances(noise: Tensor) -> Tensor:  # [..., B, Z] -> [..., B, B]
    """``mean (n_i - n_j)^2`` over the entries of noise, for all pairs of a batch: nothing that is trained, so it can be made ahead."""
    return (noise[..., :, None, :] - noise[..., None, :, :]).square().mean(-1)


def diversity(distances: Tensor, output: Tensor) -> Tensor:  # [B, B], [B, D] -> []
    """``exp(-mean_ij(mean|o_i - o_j| * d_ij))`` over all pairs of the batch, i = j included; d are the :func:`distances` of the noise.

    1 where all outputs are the same, towards 0 as outputs of unlike noise move apart. It is a property of the batch as a
    whole, not of its examples, hence a scalar.
    """
    outputs = torch.cdist(output, output, p=1) / output.shape[-1]
    return (-(outputs * distances).mean()).exp()
