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


def squared_diversity(left: Tensor, right: Tensor) -> Tensor:  # [B, D], [B, E] -> []
    """``exp(-mean_ij(mean (l_i - l_j)^2 * mean (r_i - r_j)^2))`` over all pairs of the batch, including i = j (DFRD).

    Args:
        left: one vector per example, for example the images.
        right: another vector per example, for example the inputs of the generator.
    """
    return (-(squared_distances(left) * squared_distances(right)).mean()).exp()


def squared_distances(values: Tensor) -> Tensor:  # [B, D] -> [B, B]
    """``mean (v_i - v_j)^2`` over the entries of vectors, for all pairs, by products of vectors, which need less memory."""
    squares = values.square().sum(-1)
    return ((squares[:, None] + squares - 2 * values @ values.mT) / values.shape[-1]).clamp(min=0)
