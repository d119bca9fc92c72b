"""The model-contrastive loss: near one network's embedding of the same image, far from another's."""

from torch import Tensor
from torch.nn import functional as F


def model_contrastive(z: Tensor, near: Tensor, far: Tensor, temperature: float) -> Tensor:  # [B, D] x 3 -> [B]
    """``-ln(e^(cos(z, near)/T) / (e^(cos(z, near)/T) + e^(cos(z, far)/T)))`` (Li, He, Song, CVPR 2021).

    Args:
        z: embeddings that learn.
        near: of the same images, to come near to; detached.
        far: of the same images, to get away from; detached.
        temperature: T > 0.
    """
    return F.softplus((F.cosine_similarity(z, far) - F.cosine_similarity(z, near)) / temperature)
