"""Images in four rotations, and the joint task of telling class and rotation (Yang et al., IJCAI 2021: HSAKD)."""

import torch
from torch import Tensor

from fedkd.check import require

QUARTERS = 4


def rotations(x: Tensor) -> Tensor:  # [B, channels, H, H] -> [4B, channels, H, H]
    """Every image turned by 0, 90, 180, 270 degrees, counter-clockwise; image b turned k times is at ``4b + k``.

    Raises:
        ValueError: images are not square: a quarter turn would change their shape.
    """
    height, width = x.shape[-2:]
    require(height == width, "rotations", "must be of square images", f"{height}x{width}")
    return torch.stack([x.rot90(k, (-2, -1)) for k in range(QUARTERS)], 1).flatten(0, 1)


def joint_labels(y: Tensor) -> Tensor:  # [B] -> [4B]
    """``4 y_b + k``, in 0..4C-1, of :func:`rotations`."""
    return (QUARTERS * y[:, None] + torch.arange(QUARTERS, device=y.device)).flatten()


def class_logits(joint: Tensor) -> Tensor:  # [..., 4C] -> [..., C]
    """The sum of each class's four logits: what a head of the joint task says of classes alone."""
    return joint.unflatten(-1, (-1, QUARTERS)).sum(-1)
