"""Cross-entropy with the true label."""

import torch.nn.functional as F
from torch import Tensor

from fedkd.tensor_ops import at_least_float32


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:  # [..., C], [...] -> [...]
    """``-ln softmax(logits)[y]`` per example, in float32 at least.

    Args:
        logits: any number of leading dimensions.
        y: labels, int64, in 0..C-1.
    """
    logits = at_least_float32(logits)
    if logits.dim() == 3:  # several heads: torch's kernel is fast only if classes are not the last dimension
        return F.cross_entropy(logits.mT, y, reduction="none")
    return -logits.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
