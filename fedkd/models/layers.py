"""What several networks are made of, and how they begin."""

from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class GlobalAveragePool(nn.Module):
    """Each channel's mean; ``nn.AdaptiveAvgPool2d`` has no fast rule for many networks at once."""

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C]
        return x.mean((2, 3))


def conv_batchnorm(before: int, width: int, size: int, *, stride: int, groups: int) -> list[nn.Module]:
    """A convolution without bias that keeps the image's size but for ``stride``, and BatchNorm."""
    return [nn.Conv2d(before, width, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(width)]


def init_fan_out(module: Module) -> Module:
    """``module`` itself, its convolutions as He et al. 2015 begin: normal, variance 2 / (kernel's area x channels out); biases 0.

    Channels out are all of them, whatever the groups.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def init_small(linear: nn.Linear) -> nn.Linear:
    """``linear`` itself, its weights normal with deviation 0.01, its biases 0."""
    nn.init.trunc_normal_(linear.weight, std=0.01)  # cut off at 2, which is 200 deviations away
    nn.init.zeros_(linear.bias)
    return linear
