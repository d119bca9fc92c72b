"""ShuffleNet V1 (Zhang et al., 2018) and V2 (Ma et al., 2018) for small images, as in RepDistiller."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedkd.errors import require
from fedkd.models.base import Classifier
from fedkd.models.layers import GlobalAveragePool, conv_batchnorm
from fedkd.types import Task


class ShuffleUnit(nn.Module):
    """A 1x1 convolution in groups, a shuffle of their channels, a 3x3 one for each channel, and a 1x1 one in groups; then the shortcut.

    With stride 1 the shortcut is added. With stride 2 it is 3x3 average pooling, put beside the residual, which has the channels that are
    missing. ReLU after the first two convolutions and at the end.

    Args:
        before: channels of the input; as many as of the output where stride is 1.
        width: channels of the output.
        stride: 1 or 2.
        groups: of the last convolution.
        first: groups of the first.
    """

    def __init__(self, before: int, width: int, stride: int, groups: int, first: int) -> None:
        super().__init__()
        made = width if stride == 1 else width - before
        inner = made // 4
        self.residual = nn.Sequential(
            *conv_batchnorm(before, inner, 1, stride=1, groups=first), nn.ReLU(), nn.ChannelShuffle(first),
            *conv_batchnorm(inner, inner, 3, stride=stride, groups=inner), nn.ReLU(),
            *conv_batchnorm(inner, made, 1, stride=1, groups=groups),
        )  # fmt: skip
        self.pool = None if stride == 1 else nn.AvgPool2d(3, stride, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # [B, before, H, W] -> [B, width, H / stride, W / stride]
        if self.pool is None:
            return self.relu(self.residual(x) + x)
        return self.relu(torch.cat((self.residual(x), self.pool(x)), 1))


class ShuffleNetV1(Classifier):
    """A 1x1 stem, three stages of shuffle units, the first of each with stride 2, global average pooling and one linear head.

    The stem belongs to the first stage; the embedding is the mean of the last map. With a stem of 24, widths (240, 480, 960),
    (4, 8, 4) units and three groups: 949,258 parameters for CIFAR-100 (0.95 M). Layers begin as PyTorch's.

    Deviations from the paper, all as in RepDistiller: a stem of 1x1, without stride and pooling, as images are small; ReLU after the 3x3
    convolution.

    Args:
        task: images of any size.
        stem: channels of the stem.
        widths: channels of each stage.
        blocks: units of each stage.
        groups: of 1x1 convolutions, but for the very first unit's first one.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """

    def __init__(self, task: Task, *, stem: int, widths: Sequence[int], blocks: Sequence[int], groups: int) -> None:
        require(groups > 0, "groups", "must be > 0", groups)
        channels, unit = (stem, *widths), 4 * groups
        require(stem > 0 and stem % unit == 0, "stem", f"must be a multiple of 4 groups ({unit})", stem)
        rising = len(widths) > 0 and all(a < b and b % unit == 0 for a, b in zip(channels, widths))
        require(rising, "widths", f"must rise, from the stem's {stem}, in multiples of 4 groups ({unit})", widths)
        wanted = len(blocks) == len(widths) and all(n > 0 for n in blocks)
        require(wanted, "blocks", f"must be a positive integer for each of the {len(widths)} widths", blocks)
        stages = []
        for before, width, number in zip(channels, widths, blocks):
            rest = [ShuffleUnit(width, width, 1, groups, groups) for _ in range(number - 1)]
            stages.append(nn.Sequential(ShuffleUnit(before, width, 2, groups, groups if stages else 1), *rest))
        stages[0] = nn.Sequential(*conv_batchnorm(task.shape[0], stem, 1, stride=1, groups=1), nn.ReLU(), *stages[0])
        super().__init__(task, stages, GlobalAveragePool(), nn.Linear(widths[-1], task.num_classes), widths[-1])
        self.blocks, self.groups = blocks[-1], groups

    def extra_stage(self) -> nn.Module:
        width, groups = self.embedding_size, self.groups
        return nn.Sequential(*[ShuffleUnit(width, width, 1, groups, groups) for _ in range(self.blocks)])


def conv_branch(before: int, width: int, stride: int) -> nn.Sequential:
    """1x1, 3x3 for each channel, and 1x1 convolution, each with BatchNorm, ReLU after the 1x1 ones."""
    return nn.Sequential(
        *conv_batchnorm(before, width, 1, stride=1, groups=1), nn.ReLU(),
        *conv_batchnorm(width, width, 3, stride=stride, groups=width),
        *conv_batchnorm(width, width, 1, stride=1, groups=1), nn.ReLU(),
    )  # fmt: skip


class SplitUnit(nn.Module):
    """One half of the channels passes as it is, the other through a branch; then both are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = conv_branch(width // 2, width // 2, 1)
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
            *conv_batchnorm(before, before, 3, stride=stride, groups=before),
            *conv_batchnorm(before, width // 2, 1, stride=1, groups=1), nn.ReLU(),
        )  # fmt: skip
        self.right = conv_branch(before, width // 2, stride)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:  # [B, before, H, W] -> [B, width, H / stride, W / stride]
        return self.shuffle(torch.cat((self.left(x), self.right(x)), 1))


def unit_sequence(before: int, width: int, blocks: int, stride: int) -> list[nn.Module]:
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
        ConfigError: naming the key, the rule and the value.
    """

    def __init__(self, task: Task, *, stem: int, widths: Sequence[int], blocks: Sequence[int], embedding_size: int) -> None:
        require(stem > 0, "stem", "must be > 0", stem)
        even = len(widths) > 0 and all(w > 0 and w % 2 == 0 for w in widths)
        require(even, "widths", "must be one or more even positive integers", widths)
        wanted = len(blocks) == len(widths) and all(n > 0 for n in blocks)
        require(wanted, "blocks", f"must be a positive integer for each of the {len(widths)} widths", blocks)
        require(embedding_size > 0, "embedding_size", "must be > 0", embedding_size)
        stages = [nn.Sequential(*unit_sequence(*shape, 2)) for shape in zip((stem, *widths), widths, blocks)]
        stages[0] = nn.Sequential(*conv_batchnorm(task.shape[0], stem, 1, stride=1, groups=1), nn.ReLU(), *stages[0])
        embed = nn.Sequential(*conv_batchnorm(widths[-1], embedding_size, 1, stride=1, groups=1), nn.ReLU(), GlobalAveragePool())
        super().__init__(task, stages, embed, nn.Linear(embedding_size, task.num_classes), embedding_size)
        self.last = (widths[-1], widths[-1], blocks[-1])

    def extra_stage(self) -> nn.Module:
        return nn.Sequential(*unit_sequence(*self.last, 1))
