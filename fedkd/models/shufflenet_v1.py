"""ShuffleNet for small images (Zhang et al. 2018, as RepDistiller has it)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedkd.check import require
from fedkd.models.classifier import Classifier
from fedkd.models.layers import GlobalAveragePool, convolved
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
            *convolved(before, inner, 1, stride=1, groups=first), nn.ReLU(), nn.ChannelShuffle(first),
            *convolved(inner, inner, 3, stride=stride, groups=inner), nn.ReLU(),
            *convolved(inner, made, 1, stride=1, groups=groups),
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
        ValueError: naming the key, the rule and the value.
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
        stages[0] = nn.Sequential(*convolved(task.shape[0], stem, 1, stride=1, groups=1), nn.ReLU(), *stages[0])
        super().__init__(task, stages, GlobalAveragePool(), nn.Linear(widths[-1], task.num_classes), widths[-1])
        self.blocks, self.groups = blocks[-1], groups

    def extra_stage(self) -> nn.Module:
        width, groups = self.embedding_size, self.groups
        return nn.Sequential(*[ShuffleUnit(width, width, 1, groups, groups) for _ in range(self.blocks)])
