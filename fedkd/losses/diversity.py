"""The diversity term of generators (Mao et al. 2019, in the discriminator-free form of FedGen's public code)."""

from torch import Tensor


def diversity(noise: Tensor, output: Tensor) -> Tensor:  # [B, Z], [B, D] -> []
    """``exp(-mean_ij(mean|o_i - o_j| * mean(n_i - n_j)^2))`` over all pairs of the batch, i = j included.

    1 where all outputs are the same, towards 0 as outputs of unlike noise move apart. It is a property of the batch as a
    whole, not of its examples, hence a scalar.
    """
    outputs = (output[:, None] - output[None]).abs().mean(-1)
    noises = (noise[:, None] - noise[None]).square().mean(-1)
    return (-(outputs * noises).mean()).exp()
