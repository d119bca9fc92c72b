"""ShuffleNet V2 for small images (Ma et al. 2018, as RepDistiller has it)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedkd.check import require
from fedkd.models.classifier import Classifier
from fedkd.models.layers import GlobalAveragePool, convolved
from fedkd.types import Task


def branch(before: int, width: int, stride: int) -> nn.Sequential:
    """1x1, 3x3 for each channel, and 1x1 convolution, each with BatchNorm, ReLU after the 1x1 ones."""
    return nn.Sequential(
        *convolved(before, width, 1, stride=1, groups=1), nn.ReLU(),
        *convolved(width, width, 3, stride=stride, groups=width),
        *convolved(width, width, 1, stride=1, groups=1), nn.ReLU(),
    )  # fmt: skip


class SplitUnit(nn.Module):
    """One half of the channels passes as it is, the other through a branch; then both are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = branch(width // 2, width // 2, 1)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:  # [B, width, H, W] -> the same shape
        kept, changed = x.chunk(2, 1)
        return self.shuffle(torch.cat((kept, self.branch(changed)), 1))


class DownUnit(nn.Module):
    """Two branches of all channels, each of which gives half of the output; then both are shuffled.

    The one is a 3x3 convolution for each channel and a 1x1 one with ReLU, the other as in :class:`SplitUnit`.
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.left = nn.Sequential(
            *convolved(before, before, 3, stride=stride, groups=before),
            *convolved(before, width // 2, 1, stride=1, groups=1), nn.ReLU(),
        )  # fmt: skip
        self.right = branch(before, width // 2, stride)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:  # [B, before, H, W] -> [B, width, H / stride, W / stride]
        return self.shuffle(torch.cat((self.left(x), self.right(x)), 1))


def stage(before: int, width: int, blocks: int, stride: int) -> list[nn.Module]:
    """A unit that changes the shape, and units that do not."""
    return [DownUnit(before, width, stride), *[SplitUnit(width) for _ in range(blocks - 1)]]


class ShuffleNetV2(Classifier):
    """A 1x1 stem, three stages of units that split and shuffle channels, a 1x1 convolution, and one linear head.

    The stem belongs to the first stage; the first unit of each has stride 2. The last convolution with BatchNorm and ReLU, and global
    average pooling, are ``embed``. With a stem of 24, widths (116, 232, 464), (4, 8, 4) units and an embedding of 1024 (size 1):
    1,355,528 parameters for CIFAR-100 (1.36 M). Layers begin as PyTorch's.

    Deviation from the paper, as in RepDistiller: a stem of 1x1, without stride and pooling, as images are small.

    Args:
        task: images of any size.
        stem: channels of the stem.
        widths: channels of each stage, even.
        blocks: units of each stage.
        embedding_size: channels of the last convolution.

    Raises:
        ValueError: naming the key, the rule and the value.
    """

    def __init__(self, task: Task, *, stem: int, widths: Sequence[int], blocks: Sequence[int], embedding_size: int) -> None:
        require(stem > 0, "stem", "must be > 0", stem)
        even = len(widths) > 0 and all(w > 0 and w % 2 == 0 for w in widths)
        require(even, "widths", "must be one or more even positive integers", widths)
        wanted = len(blocks) == len(widths) and all(n > 0 for n in blocks)
        require(wanted, "blocks", f"must be a positive integer for each of the {len(widths)} widths", blocks)
        require(embedding_size > 0, "embedding_size", "must be > 0", embedding_size)
        stages = [nn.Sequential(*stage(*shape, 2)) for shape in zip((stem, *widths), widths, blocks)]
        stages[0] = nn.Sequential(*convolved(task.shape[0], stem, 1, stride=1, groups=1), nn.ReLU(), *stages[0])
        embed = nn.Sequential(*convolved(widths[-1], embedding_size, 1, stride=1, groups=1), nn.ReLU(), GlobalAveragePool())
        super().__init__(task, stages, embed, nn.Linear(embedding_size, task.num_classes), embedding_size)
        self.last = (widths[-1], widths[-1], blocks[-1])

    def extra_stage(self) -> nn.Module:
        return nn.Sequential(*stage(*self.last, 1))
