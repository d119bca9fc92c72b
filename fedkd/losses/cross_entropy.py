"""Cross-entropy with the true label."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:  # [..., C], [...] -> [...]
    """``-ln softmax(logits)[y]`` per example, any leading shape."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)
