"""MobileNetV2 for small images (Sandler et al. 2018), as in RepDistiller."""

from torch import Tensor, nn

from fedkd.errors import require
from fedkd.models.base import ImageClassifier
from fedkd.models.layers import GlobalAveragePool, conv_batchnorm, init_fan_out, init_small
from fedkd.types import Task

STAGES = ([(24, 2, 1)], [(32, 3, 2)], [(64, 4, 2), (96, 3, 1)], [(160, 3, 2), (320, 1, 1)])
"""Rows 2 to 7 of Table 2 of the paper by stage: channels, number of blocks, stride of the first block. Row 2 has stride 2 in the paper."""


class InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a depthwise 3x3 convolution, and a 1x1 convolution to fewer channels.

    Each has BatchNorm, the first two also ReLU. The input is added if the shape is the same.

    Args:
        in_channels: channels of the input.
        width: channels of the output.
        stride: stride of the depthwise convolution.
        expansion: channels of the depthwise convolution per input channel.
    """

    def __init__(self, in_channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.residual = nn.Sequential(
            *conv_batchnorm(in_channels, inner, 1, stride=1, groups=1), nn.ReLU(),
            *conv_batchnorm(inner, inner, 3, stride=stride, groups=inner), nn.ReLU(),
            *conv_batchnorm(inner, width, 1, stride=1, groups=1),
        )  # fmt: skip
        self.same_shape = stride == 1 and in_channels == width

    def forward(self, x: Tensor) -> Tensor:  # [B, in_channels, H, W] -> [B, width, H / stride, W / stride]
        """The residual, plus the input where the shapes are equal."""
        return x + self.residual(x) if self.same_shape else self.residual(x)


def residual_row(in_channels: int, width: int, num_blocks: int, stride: int, expansion: int) -> list[nn.Module]:
    """The blocks of one row of the table. The first block has the stride."""
    rest = [InvertedResidual(width, width, 1, expansion) for _ in range(num_blocks - 1)]
    return [InvertedResidual(in_channels, width, stride, expansion), *rest]


class MobileNetV2(ImageClassifier):
    """A 3x3 stem, seven rows of inverted residuals in four stages, a 1x1 convolution to 1280 channels, and one linear head.

    The stages are those of the code of hierarchical self-supervision (Yang et al. 2021): stem and rows 1 and 2; row 3; rows 4 and 5; rows 6
    and 7. Their outputs have no activation, like those of blocks. The last convolution with BatchNorm and ReLU, and global average
    pooling, are ``embed``. With half the channels and expansion 6 the network has 812,836 parameters for CIFAR-100 (0.81 M).
    Initialization: convolutions as He et al. 2015 (normal, fan out), head with standard deviation 0.01, biases 0.

    Deviations from the paper, all as in RepDistiller: ReLU instead of ReLU6; stride 1 in row 2; no dropout; an expansion layer also in
    row 1, with factor 1; numbers of channels are rounded down, and not to multiples of 8.

    Args:
        task: images of any size.
        width_multiplier: factor of all channels, >= 1/16. The last convolution is widened only if it is > 1.
        expansion: expansion of all rows but the first, > 0.
        stem_stride: 2 as in RepDistiller; 1 as in the code of hierarchical self-supervision, which gives maps of four times the size and a
            better baseline for CIFAR-100 (73.51 instead of 64.60).

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(self, task: Task, *, width_multiplier: float, expansion: int, stem_stride: int) -> None:
        require(width_multiplier >= 1 / 16, "width_multiplier", "must be >= 1/16 (one channel in the first row)", width_multiplier)
        require(expansion > 0, "expansion", "must be > 0", expansion)
        require(stem_stride in (1, 2), "stem_stride", "must be 1 or 2", stem_stride)
        stem, in_channels, size = int(32 * width_multiplier), int(16 * width_multiplier), int(1280 * max(width_multiplier, 1))
        first = conv_batchnorm(task.shape[0], stem, 3, stride=stem_stride, groups=1)
        stages: list[list[nn.Module]] = [[*first, nn.ReLU(), *residual_row(stem, in_channels, 1, 1, 1)], [], [], []]
        for layers, rows in zip(stages, STAGES):
            for channels, num_blocks, stride in rows:
                width = int(channels * width_multiplier)
                layers += residual_row(in_channels, width, num_blocks, stride, expansion)
                in_channels = width
        embed = nn.Sequential(*conv_batchnorm(in_channels, size, 1, stride=1, groups=1), nn.ReLU(), GlobalAveragePool())
        head = init_small(nn.Linear(size, task.num_classes))
        super().__init__(task, [nn.Sequential(*layers) for layers in stages], embed, head, size)
        self.width_multiplier, self.expansion = width_multiplier, expansion
        init_fan_out(self)

    def extra_stage(self) -> nn.Module:
        """New rows 6 and 7 with stride 1, see :meth:`fedkd.models.base.Classifier.extra_stage`."""
        (inner, num_inner, _), (last, num_last, _) = STAGES[-1]
        inner, last = int(inner * self.width_multiplier), int(last * self.width_multiplier)
        first = residual_row(last, inner, num_inner, 1, self.expansion)
        second = residual_row(inner, last, num_last, 1, self.expansion)
        return init_fan_out(nn.Sequential(*first, *second))
