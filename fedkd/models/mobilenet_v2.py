"""MobileNetV2 for small images (Sandler et al. 2018, as RepDistiller has it)."""

from torch import Tensor, nn

from fedkd.errors import require
from fedkd.models.base import Classifier
from fedkd.models.layers import GlobalAveragePool, conv_batchnorm, init_fan_out, init_small
from fedkd.types import Task

STAGES = ([(24, 2, 1)], [(32, 3, 2)], [(64, 4, 2), (96, 3, 1)], [(160, 3, 2), (320, 1, 1)])
"""Channels, blocks and the first block's stride of the rows of Table 2 of the paper after the first, the second row's stride apart."""


class InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a 3x3 one for each channel, and a 1x1 one back; added to the input where the shape stays.

    BatchNorm after each, ReLU after the first two.

    Args:
        before: channels of the input.
        width: channels of the output.
        stride: of the middle one.
        expansion: the middle has so many times the channels of the input.
    """

    def __init__(self, before: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.residual = nn.Sequential(
            *conv_batchnorm(before, inner, 1, stride=1, groups=1), nn.ReLU(),
            *conv_batchnorm(inner, inner, 3, stride=stride, groups=inner), nn.ReLU(),
            *conv_batchnorm(inner, width, 1, stride=1, groups=1),
        )  # fmt: skip
        self.same = stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:  # [B, before, H, W] -> [B, width, H / stride, W / stride]
        return x + self.residual(x) if self.same else self.residual(x)


def residual_row(before: int, width: int, blocks: int, stride: int, expansion: int) -> list[nn.Module]:
    """One row of the table."""
    rest = [InvertedResidual(width, width, 1, expansion) for _ in range(blocks - 1)]
    return [InvertedResidual(before, width, stride, expansion), *rest]


class MobileNetV2(Classifier):
    """A 3x3 stem, seven rows of inverted residuals in four stages, a 1x1 convolution to 1280 channels, and one linear head.

    Stages are those of hierarchical self-supervision's code (Yang et al. 2021): stem and rows 1 and 2; row 3; rows 4 and 5; rows 6
    and 7. They end without an activation, as blocks do. The last convolution with BatchNorm and ReLU, and global average pooling,
    are ``embed``. With half the channels and six times as many inside: 812,836 parameters for CIFAR-100 (0.81 M). Convolutions
    begin as in He et al. 2015 (normal, fan out), the head with deviation 0.01; biases are 0.

    Deviations from the paper, all as in RepDistiller: ReLU, not ReLU6; no stride in the second row; no dropout; an expansion layer in
    the first row too, whose factor is 1; channels are rounded down, and not to multiples of 8.

    Args:
        task: images of any size.
        width_multiplier: of all channels but the last convolution's, which is widened only where it is > 1.
        expansion: of all rows but the first.
        stem_stride: 2 (RepDistiller) or 1 (hierarchical self-supervision's code: maps of four times the size, and a better baseline for
            CIFAR-100, 73.51 against 64.60).

    Raises:
        ConfigError: naming the key, the rule and the value.
    """

    def __init__(self, task: Task, *, width_multiplier: float, expansion: int, stem_stride: int) -> None:
        require(width_multiplier >= 1 / 16, "width_multiplier", "must be >= 1/16 (one channel in the first row)", width_multiplier)
        require(expansion > 0, "expansion", "must be > 0", expansion)
        require(stem_stride in (1, 2), "stem_stride", "must be 1 or 2", stem_stride)
        stem, before, size = int(32 * width_multiplier), int(16 * width_multiplier), int(1280 * max(width_multiplier, 1))
        first = conv_batchnorm(task.shape[0], stem, 3, stride=stem_stride, groups=1)
        stages = [[*first, nn.ReLU(), *residual_row(stem, before, 1, 1, 1)], [], [], []]
        for layers, rows in zip(stages, STAGES):
            for channels, blocks, stride in rows:
                width = int(channels * width_multiplier)
                layers += residual_row(before, width, blocks, stride, expansion)
                before = width
        embed = nn.Sequential(*conv_batchnorm(before, size, 1, stride=1, groups=1), nn.ReLU(), GlobalAveragePool())
        head = init_small(nn.Linear(size, task.num_classes))
        super().__init__(task, [nn.Sequential(*layers) for layers in stages], embed, head, size)
        self.width_multiplier, self.expansion = width_multiplier, expansion
        init_fan_out(self)

    def extra_stage(self) -> nn.Module:
        (inner, blocks, _), (last, one, _) = STAGES[-1]
        inner, last = int(inner * self.width_multiplier), int(last * self.width_multiplier)
        return init_fan_out(nn.Sequential(*residual_row(last, inner, blocks, 1, self.expansion), *residual_row(inner, last, one, 1, self.expansion)))
