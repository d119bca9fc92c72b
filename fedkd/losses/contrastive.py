"""The model-contrastive loss of MOON: close to one network's embedding of the same image, far from that of another network."""

from torch import Tensor
from torch.nn import functional as F


def model_contrastive(z: Tensor, near: Tensor, far: Tensor, temperature: float) -> Tensor:  # [B, D] x 3 -> [B]
    """``-ln(e^(cos(z, near)/T) / (e^(cos(z, near)/T) + e^(cos(z, far)/T)))`` per example (Li, He and Song, CVPR 2021).

    Args:
        z: embeddings of the network that is trained.
        near: embeddings of the same images to approach, detached.
        far: embeddings of the same images to avoid, detached.
        temperature: T > 0.
    """
    return F.softplus((F.cosine_similarity(z, far) - F.cosine_similarity(z, near)) / temperature)
