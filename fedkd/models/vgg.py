"""VGG with BatchNorm for small images (Simonyan & Zisserman 2015; RepDistiller's VGG-8 and VGG-13)."""

from collections.abc import Sequence

from torch import nn

from fedkd.errors import require
from fedkd.models.base import Classifier
from fedkd.models.layers import GlobalAveragePool, init_fan_out, init_small
from fedkd.types import Task


def conv_block(before: int, width: int, convolutions: int) -> list[nn.Module]:
    """3x3 convolutions (with bias), each with BatchNorm and ReLU."""
    layers = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(before, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return layers


class VGG(Classifier):
    """Five blocks of 3x3 convolutions, 2x2 max pooling between the first four, global average pooling and one linear head.

    There are four stages, as in hierarchical self-supervision's code (Yang et al. 2021): block 1; pooling and block 2; pooling and block
    3; pooling and blocks 4 and 5, whose maps are of one size. A stage so ends before the pooling that follows it. The embedding is the
    mean of the last map. Parameters for CIFAR-100, widths (64, 128, 256, 512, 512): 3,965,028 with one convolution a block (VGG-8; 3.97 M,
    or 3.96 where digits are cut off), 9,462,180 with two (VGG-13; 9.46 M).

    Convolutions begin as in He et al. 2015 (normal, fan out), the head with deviation 0.01; biases are 0. Deviations from the paper: one
    linear layer instead of three, and BatchNorm, both as in RepDistiller, which pools before block 5 too where images are 64 pixels
    high; here that is never so.

    Args:
        task: images of 8x8 pixels or more.
        convolutions: of each block.
        widths: channels of each block.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """

    def __init__(self, task: Task, *, convolutions: Sequence[int], widths: Sequence[int]) -> None:
        for name, value in (("convolutions", convolutions), ("widths", widths)):
            require(len(value) == 5 and all(n > 0 for n in value), name, "must be five positive integers", value)
        require(min(task.shape[1:]) >= 8, "widths", f"must leave at least one pixel of images {task.shape} after three poolings", widths)
        channels = (task.shape[0], *widths)
        blocks = [conv_block(*shape) for shape in zip(channels, widths, convolutions)]
        stages = [nn.Sequential(*blocks[0]), *[nn.Sequential(nn.MaxPool2d(2), *layers) for layers in blocks[1:3]]]
        stages.append(nn.Sequential(nn.MaxPool2d(2), *blocks[3], *blocks[4]))
        head = init_small(nn.Linear(widths[-1], task.num_classes))
        super().__init__(task, stages, GlobalAveragePool(), head, widths[-1])
        self.last = [(widths[-1], widths[3], convolutions[3]), (widths[3], widths[4], convolutions[4])]
        init_fan_out(self)

    def extra_stage(self) -> nn.Module:
        return init_fan_out(nn.Sequential(*[layer for shape in self.last for layer in conv_block(*shape)]))
