"""Cross-entropy with the true label, the true labels, or the next tokens."""

import torch.nn.functional as F
from torch import Tensor

from fedkd.tensor_ops import at_least_float32
from fedkd.types import PADDING


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The loss of each example [B] for every kind of target (:data:`fedkd.types.Target`), in float32 at least.

    - One class: ``-ln softmax(logits)[y]``.
    - Any number of classes: the mean over classes of ``-ln sigmoid(logits)`` where y is 1, and of ``-ln sigmoid(-logits)`` where it is 0.
    - Next tokens: the mean of ``-ln softmax(logits)[y]`` over the positions that are no padding; 0 where all of them are padding.

    Args:
        logits: [B, C], or [B, L, C] with next tokens.
        y: classes [B], int64, in 0..C-1; or 0 and 1 as floats [B, C]; or next tokens [B, L], int64.
    """
    if y.dim() == logits.dim():
        return F.binary_cross_entropy_with_logits(at_least_float32(logits), at_least_float32(y), reduction="none").mean(-1)
    losses = class_cross_entropy(logits, y)
    if logits.dim() < 3:
        return losses
    counted = (y != PADDING).to(losses.dtype)
    return (losses * counted).sum(-1) / counted.sum(-1).clamp(min=1)


def class_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:  # [..., C], [...] -> [...]
    """``-ln softmax(logits)[y]`` of each label, in float32 at least.

    Args:
        logits: any number of leading dimensions, such as several heads.
        y: labels, int64, in 0..C-1.
    """
    logits = at_least_float32(logits)
    if logits.dim() == 3:  # torch's kernel is fast only if classes are not the last dimension
        return F.cross_entropy(logits.mT, y, reduction="none")
    return -logits.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
