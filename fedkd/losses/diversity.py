"""The diversity loss of generators (Mao et al. 2019), in the form of FedGen's public code without a discriminator."""

import torch
from torch import Tensor


def noise_distances(noise: Tensor) -> Tensor:  # [..., B, Z] -> [..., B, B]
    """``mean (n_i - n_j)^2`` over the entries of the noise, for all pairs of a batch. It can be computed before the training."""
    return (noise[..., :, None, :] - noise[..., None, :, :]).square().mean(-1)


def diversity(distances: Tensor, output: Tensor) -> Tensor:  # [B, B], [B, D] -> []
    """``exp(-mean_ij(mean|o_i - o_j| * d_ij))`` over all pairs of the batch, including i = j.

    It is 1 if all outputs are equal, and approaches 0 as outputs for different noise move apart. It is a property of the whole batch, so a
    scalar.

    Args:
        distances: d, the :func:`noise_distances` of the batch.
        output: o, the outputs of the generator.
    """
    output_distances = torch.cdist(output, output, p=1) / output.shape[-1]
    return (-(output_distances * distances).mean()).exp()
