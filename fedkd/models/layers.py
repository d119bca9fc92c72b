"""Layers and initializations that several networks share."""

from typing import TypeVar

from torch import Tensor, nn

from fedkd.errors import require
from fedkd.types import Task

Module = TypeVar("Module", bound=nn.Module)


class GlobalAveragePool(nn.Module):
    """The mean of each channel. Unlike ``nn.AdaptiveAvgPool2d`` it is fast inside ``torch.vmap``."""

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C]
        """The mean over height and width."""
        return x.mean((2, 3))


def conv_batchnorm(in_channels: int, width: int, size: int, *, stride: int, groups: int) -> list[nn.Module]:
    """A convolution without bias, and BatchNorm.

    Args:
        in_channels: channels of the input.
        width: channels of the output.
        size: height and width of the kernel, odd. The padding keeps the size of images at stride 1.
        stride: stride of the convolution.
        groups: groups of the convolution.
    """
    return [nn.Conv2d(in_channels, width, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(width)]


def init_fan_out(module: Module) -> Module:
    """Initialize the convolutions of ``module`` as He et al. 2015: normal with variance 2 / (kernel area x output channels), biases 0.

    All output channels count, for any number of groups.

    Returns:
        ``module``.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def init_small(linear: nn.Linear) -> nn.Linear:
    """Initialize a linear layer: weights normal with standard deviation 0.01, biases 0.

    Returns:
        ``linear``.
    """
    nn.init.trunc_normal_(linear.weight, std=0.01)  # truncated at 2, which is 200 standard deviations
    nn.init.zeros_(linear.bias)
    return linear


def check_patches(task: Task, patch_size: int) -> tuple[int, int]:
    """The number of patches from top to bottom and from left to right.

    Args:
        task: the classification task.
        patch_size: height and width of a patch in pixels.

    Raises:
        ConfigError: the examples are no images, or the patches do not divide them.
    """
    sizes = task.shape[1:]
    require(len(sizes) == 2, "model", f"must be another network for examples of shape {task.shape}, which are no images", "patches")
    divides = patch_size > 0 and all(size % patch_size == 0 for size in sizes)
    require(divides, "patch_size", f"must divide the height and the width of images {task.shape}", patch_size)
    return sizes[0] // patch_size, sizes[1] // patch_size
