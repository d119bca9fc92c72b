"""ShuffleNet V1 (Zhang et al. 2018) and V2 (Ma et al. 2018) for small images, as in RepDistiller."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedkd.errors import require
from fedkd.models.base import ImageClassifier
from fedkd.models.layers import GlobalAveragePool, conv_batchnorm
from fedkd.types import Task


# ----------------------------------------------------------------------------------------------------------- ShuffleNet V1
class ShuffleUnit(nn.Module):
    """A grouped 1x1 convolution, a channel shuffle, a depthwise 3x3 convolution, a grouped 1x1 convolution, and a shortcut.

    Each convolution has BatchNorm. ReLU follows the first two convolutions and the shortcut. With stride 1 the input is added. With stride
    2 the input after 3x3 average pooling is concatenated; the residual has the remaining channels.

    Args:
        in_channels: channels of the input; at stride 1 the same as ``width``.
        width: channels of the output.
        stride: 1 or 2.
        groups: groups of the last convolution.
        first_groups: groups of the first convolution.
    """

    def __init__(self, in_channels: int, width: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        residual_width = width if stride == 1 else width - in_channels
        inner = residual_width // 4
        self.residual = nn.Sequential(
            *conv_batchnorm(in_channels, inner, 1, stride=1, groups=first_groups), nn.ReLU(), nn.ChannelShuffle(first_groups),
            *conv_batchnorm(inner, inner, 3, stride=stride, groups=inner), nn.ReLU(),
            *conv_batchnorm(inner, residual_width, 1, stride=1, groups=groups),
        )  # fmt: skip
        self.pool = None if stride == 1 else nn.AvgPool2d(3, stride, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # [B, in_channels, H, W] -> [B, width, H / stride, W / stride]
        """ReLU of the sum, or of the concatenation, of residual and shortcut."""
        if self.pool is None:
            return self.relu(self.residual(x) + x)
        return self.relu(torch.cat((self.residual(x), self.pool(x)), 1))


class ShuffleNetV1(ImageClassifier):
    """A 1x1 stem, stages of shuffle units of which the first has stride 2, global average pooling, and one linear head.

    The stem is part of the first stage; the embedding is the mean of the last map. With a stem of 24, widths (240, 480, 960), (4, 8, 4)
    units, and three groups the network has 949,258 parameters for CIFAR-100 (0.95 M). Initialization: PyTorch's default.

    Deviations from the paper, all as in RepDistiller: a 1x1 stem without stride and pooling, as images are small; ReLU after the depthwise
    convolution.

    Args:
        task: images of any size.
        stem: channels of the stem, a multiple of 4 ``groups``.
        widths: channels of each stage, increasing, multiples of 4 ``groups``.
        blocks: number of units of each stage.
        groups: groups of the 1x1 convolutions, except for the first one of the network.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(self, task: Task, *, stem: int, widths: Sequence[int], blocks: Sequence[int], groups: int) -> None:
        require(groups > 0, "groups", "must be > 0", groups)
        channels, unit = (stem, *widths), 4 * groups
        require(stem > 0 and stem % unit == 0, "stem", f"must be a multiple of 4 groups ({unit})", stem)
        rising = len(widths) > 0 and all(a < b and b % unit == 0 for a, b in zip(channels, widths))
        require(rising, "widths", f"must rise, from the stem's {stem}, in multiples of 4 groups ({unit})", widths)
        valid = len(blocks) == len(widths) and all(0 < n <= 1000 for n in blocks)
        require(valid, "blocks", f"must be a number from 1 to 1000 for each of the {len(widths)} widths", blocks)
        stages: list[nn.Sequential] = []
        for in_channels, width, num_units in zip(channels, widths, blocks):
            rest = [ShuffleUnit(width, width, 1, groups, groups) for _ in range(num_units - 1)]
            stages.append(nn.Sequential(ShuffleUnit(in_channels, width, 2, groups, groups if stages else 1), *rest))
        stages[0] = nn.Sequential(*conv_batchnorm(task.shape[0], stem, 1, stride=1, groups=1), nn.ReLU(), *stages[0])
        super().__init__(task, stages, GlobalAveragePool(), nn.Linear(widths[-1], task.num_classes), widths[-1])
        self.num_units, self.groups = blocks[-1], groups

    def extra_stage(self) -> nn.Module:
        """New shuffle units with stride 1, see :meth:`fedkd.models.base.Classifier.extra_stage`."""
        width, groups = self.embedding_size, self.groups
        return nn.Sequential(*[ShuffleUnit(width, width, 1, groups, groups) for _ in range(self.num_units)])


# ----------------------------------------------------------------------------------------------------------- ShuffleNet V2
def conv_branch(in_channels: int, width: int, stride: int) -> nn.Sequential:
    """A 1x1, a depthwise 3x3, and a 1x1 convolution, each with BatchNorm; ReLU after the 1x1 convolutions."""
    return nn.Sequential(
        *conv_batchnorm(in_channels, width, 1, stride=1, groups=1), nn.ReLU(),
        *conv_batchnorm(width, width, 3, stride=stride, groups=width),
        *conv_batchnorm(width, width, 1, stride=1, groups=1), nn.ReLU(),
    )  # fmt: skip


class SplitUnit(nn.Module):
    """Half of the channels pass unchanged, the other half pass through a branch. Then all channels are shuffled.

    Args:
        width: channels of input and output, even.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = conv_branch(width // 2, width // 2, 1)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:  # [B, width, H, W] -> the same shape
        """The shuffled channels of both halves."""
        unchanged, changed = x.chunk(2, 1)
        return self.shuffle(torch.cat((unchanged, self.branch(changed)), 1))


class DownUnit(nn.Module):
    """All channels pass through two branches, each of which gives half of the output. Then all channels are shuffled.

    The left branch is a depthwise 3x3 convolution and a 1x1 convolution with ReLU. The right one is that of :class:`SplitUnit`.

    Args:
        in_channels: channels of the input.
        width: channels of the output, even.
        stride: stride of both branches.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.left = nn.Sequential(
            *conv_batchnorm(in_channels, in_channels, 3, stride=stride, groups=in_channels),
            *conv_batchnorm(in_channels, width // 2, 1, stride=1, groups=1), nn.ReLU(),
        )  # fmt: skip
        self.right = conv_branch(in_channels, width // 2, stride)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:  # [B, in_channels, H, W] -> [B, width, H / stride, W / stride]
        """The shuffled channels of both branches."""
        return self.shuffle(torch.cat((self.left(x), self.right(x)), 1))


def unit_sequence(in_channels: int, width: int, num_units: int, stride: int) -> list[nn.Module]:
    """A :class:`DownUnit` that changes the shape, followed by :class:`SplitUnit`."""
    return [DownUnit(in_channels, width, stride), *[SplitUnit(width) for _ in range(num_units - 1)]]


class ShuffleNetV2(ImageClassifier):
    """A 1x1 stem, stages of units that split and shuffle channels, a 1x1 convolution, and one linear head.

    The stem is part of the first stage; the first unit of each stage has stride 2. The last convolution with BatchNorm and ReLU, and global
    average pooling, are ``embed``. With a stem of 24, widths (116, 232, 464), (4, 8, 4) units, and an embedding of 1024 (size 1) the
    network has 1,355,528 parameters for CIFAR-100 (1.36 M). Initialization: PyTorch's default.

    Deviation from the paper, as in RepDistiller: a 1x1 stem without stride and pooling, as images are small.

    Args:
        task: images of any size.
        stem: channels of the stem, > 0.
        widths: channels of each stage, even.
        blocks: number of units of each stage.
        embedding_size: channels of the last convolution, > 0.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(self, task: Task, *, stem: int, widths: Sequence[int], blocks: Sequence[int], embedding_size: int) -> None:
        require(stem > 0, "stem", "must be > 0", stem)
        even = len(widths) > 0 and all(w > 0 and w % 2 == 0 for w in widths)
        require(even, "widths", "must be one or more even positive integers", widths)
        valid = len(blocks) == len(widths) and all(0 < n <= 1000 for n in blocks)
        require(valid, "blocks", f"must be a number from 1 to 1000 for each of the {len(widths)} widths", blocks)
        require(embedding_size > 0, "embedding_size", "must be > 0", embedding_size)
        stages = [nn.Sequential(*unit_sequence(*shape, 2)) for shape in zip((stem, *widths), widths, blocks)]
        stages[0] = nn.Sequential(*conv_batchnorm(task.shape[0], stem, 1, stride=1, groups=1), nn.ReLU(), *stages[0])
        embed = nn.Sequential(*conv_batchnorm(widths[-1], embedding_size, 1, stride=1, groups=1), nn.ReLU(), GlobalAveragePool())
        super().__init__(task, stages, embed, nn.Linear(embedding_size, task.num_classes), embedding_size)
        self.extra_shape = (widths[-1], widths[-1], blocks[-1])

    def extra_stage(self) -> nn.Module:
        """New units with stride 1, see :meth:`fedkd.models.base.Classifier.extra_stage`."""
        return nn.Sequential(*unit_sequence(*self.extra_shape, 1))
