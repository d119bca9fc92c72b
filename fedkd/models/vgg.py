"""VGG with BatchNorm for small images (Simonyan and Zisserman 2015; RepDistiller's VGG-8 and VGG-13)."""

from collections.abc import Sequence

from torch import nn

from fedkd.errors import require
from fedkd.models.base import ImageClassifier
from fedkd.models.layers import GlobalAveragePool, init_fan_out, init_small
from fedkd.types import Task


def conv_block(in_channels: int, width: int, num_convolutions: int) -> list[nn.Module]:
    """3x3 convolutions with bias, each with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for _ in range(num_convolutions):
        layers += [nn.Conv2d(in_channels, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
        in_channels = width
    return layers


class VGG(ImageClassifier):
    """Five blocks of 3x3 convolutions, 2x2 max pooling between the first four, global average pooling, and one linear head.

    There are four stages, as in the code of hierarchical self-supervision (Yang et al. 2021): block 1; pooling and block 2; pooling and
    block 3; pooling and blocks 4 and 5, whose maps have the same size. A stage ends before the next pooling. The embedding is the mean of
    the last map.

    Parameters for CIFAR-100 with widths (64, 128, 256, 512, 512): VGG-8 with one convolution per block has 3,965,028 (published 3.97 M, or
    3.96 M truncated), VGG-13 with two has 9,462,180 (9.46 M). Initialization: convolutions as He et al. 2015 (normal, fan out), head with
    standard deviation 0.01, biases 0.

    Deviations from the paper, both as in RepDistiller: one linear layer instead of three, and BatchNorm. RepDistiller also pools before
    block 5 where images have 64 pixels; this network never does.

    Args:
        task: images of 8x8 pixels or more.
        convolutions: number of convolutions of each block, five numbers.
        widths: channels of each block, five numbers.

    Raises:
        ConfigError: a number is not positive, or the images are too small.
    """

    def __init__(self, task: Task, *, convolutions: Sequence[int], widths: Sequence[int]) -> None:
        for name, value in (("convolutions", convolutions), ("widths", widths)):
            require(len(value) == 5 and all(n > 0 for n in value), name, "must be five positive integers", value)
        require(max(convolutions) <= 1000, "convolutions", "must be at most 1000 in each stage", convolutions)
        require(min(task.shape[1:]) >= 8, "widths", f"must leave at least one pixel of images {task.shape} after three poolings", widths)
        channels = (task.shape[0], *widths)
        blocks = [conv_block(*shape) for shape in zip(channels, widths, convolutions)]
        stages = [nn.Sequential(*blocks[0]), *[nn.Sequential(nn.MaxPool2d(2), *layers) for layers in blocks[1:3]]]
        stages.append(nn.Sequential(nn.MaxPool2d(2), *blocks[3], *blocks[4]))
        head = init_small(nn.Linear(widths[-1], task.num_classes))
        super().__init__(task, stages, GlobalAveragePool(), head, widths[-1])
        self.extra_blocks = [(widths[-1], widths[3], convolutions[3]), (widths[3], widths[4], convolutions[4])]
        init_fan_out(self)

    def extra_stage(self) -> nn.Module:
        """New blocks 4 and 5 without pooling, see :meth:`fedkd.models.base.Classifier.extra_stage`."""
        return init_fan_out(nn.Sequential(*[layer for shape in self.extra_blocks for layer in conv_block(*shape)]))
