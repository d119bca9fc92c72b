"""Residual networks for small images: ResNet (He et al. 2016), pre-activation ResNet, and wide ResNet (Zagoruyko and Komodakis 2016)."""

from collections.abc import Sequence

from torch import Tensor, nn

from fedkd.errors import require
from fedkd.models.base import ImageClassifier
from fedkd.models.layers import GlobalAveragePool, init_fan_out
from fedkd.types import Task


# ------------------------------------------------------------------------------------------------------------------ ResNet
class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm, added to a shortcut, with ReLU between them and after the sum.

    The shortcut is the identity. Where the shape changes, it is a 1x1 convolution with BatchNorm (option B).

    Args:
        in_channels: channels of the input.
        width: channels of the output.
        stride: stride of the first convolution; 2 halves height and width, rounded up.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        same_shape = stride == 1 and in_channels == width
        projection = [] if same_shape else [nn.Conv2d(in_channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)]
        self.shortcut = nn.Sequential(*projection)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # [B, in_channels, H, W] -> [B, width, H / stride, W / stride]
        """ReLU of the sum of residual and shortcut."""
        return self.relu(self.residual(x) + self.shortcut(x))


class ResNet(ImageClassifier):
    """A 3x3 stem, three stages of basic blocks, global average pooling, and one linear head.

    The stem is part of the first stage; every later stage begins with stride 2. The embedding is the mean of the last map, and its size is
    the last width.

    Parameters with widths (16, 32, 64) for CIFAR-10 and CIFAR-100: depth 8 has 78,042 and 83,892, depth 20 has 272,474 and 278,324,
    depth 56 has 855,770 and 861,620, depth 110 has 1,730,714 and 1,736,564. The wide networks of the distillation benchmarks
    (RepDistiller) have a stem of 32 and widths (64, 128, 256): for CIFAR-100 depth 8 has 1,233,540, depth 32 has 7,433,860.

    Initialization: convolutions as He et al. 2015 (normal, fan out), head as PyTorch's default. Deviation: the shortcuts of He et al. have
    no parameters (option A); these have (option B), as in the benchmarks. If the stem is not as wide as the first stage, that stage has a
    projection.

    Args:
        task: images of any size.
        depth: number of layers with weights, without shortcuts: 6n + 2 for n blocks per stage, 1 <= n <= 200.
        widths: channels of the three stages.
        stem: channels of the stem; null: the first of ``widths``. Networks of different widths can so share a stem.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(self, task: Task, *, depth: int, widths: Sequence[int], stem: int | None) -> None:
        require(8 <= depth <= 1202 and depth % 6 == 2, "depth", "must be 6n + 2 for 1 <= n <= 200 (8, 14, ..., 1202)", depth)
        require(len(widths) == 3 and all(w > 0 for w in widths), "widths", "must be three positive integers", widths)
        require(stem is None or stem > 0, "stem", "must be a positive integer, or null for the first of widths", stem)
        stem, num_blocks = widths[0] if stem is None else stem, (depth - 2) // 6
        stages = []
        for in_channels, width, stride in zip((stem, *widths), widths, (1, 2, 2)):
            rest = [BasicBlock(width, width, 1) for _ in range(num_blocks - 1)]
            stages.append(nn.Sequential(BasicBlock(in_channels, width, stride), *rest))
        first = nn.Sequential(nn.Conv2d(task.shape[0], stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        stages[0] = nn.Sequential(first, *stages[0])
        super().__init__(task, stages, GlobalAveragePool(), nn.Linear(widths[-1], task.num_classes), widths[-1])
        self.widths, self.num_blocks = tuple(widths), num_blocks
        init_fan_out(self)

    def extra_stage(self) -> nn.Module:
        """New basic blocks with stride 1, see :meth:`fedkd.models.base.Classifier.extra_stage`."""
        width = self.embedding_size
        return init_fan_out(nn.Sequential(*[BasicBlock(width, width, 1) for _ in range(self.num_blocks)]))


# ---------------------------------------------------------------------------------------------- pre-activation networks
class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions, whose output is added to a shortcut. Nothing follows the sum.

    Where the shape changes, the shortcut is a 1x1 convolution of the input after the first BatchNorm and ReLU.

    Args:
        in_channels: channels of the input.
        width: channels of the output.
        stride: stride of the first convolution.
        activated: elsewhere, the shortcut is the input after the first BatchNorm and ReLU; if false, it is the input itself.
    """

    def __init__(self, in_channels: int, width: int, stride: int, *, activated: bool) -> None:
        super().__init__()
        self.activated = activated
        self.activation = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
        )  # fmt: skip
        same_shape = stride == 1 and in_channels == width
        self.projection = None if same_shape else nn.Conv2d(in_channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, in_channels, H, W] -> [B, width, H / stride, W / stride]
        """The sum of residual and shortcut."""
        active = self.activation(x)
        shortcut = self.projection(active) if self.projection is not None else active if self.activated else x
        return self.residual(active) + shortcut


class PreActResNet(ImageClassifier):
    """A 3x3 stem with BatchNorm and ReLU, stages of pre-activation blocks, global average pooling, and one linear head.

    The stem is part of the first stage; every later stage begins with stride 2. The embedding is the mean of the last map. ResNet-18 has
    two blocks in each of the stages (64, 128, 256, 512), and 11,171,274 parameters for CIFAR-10. Initialization: PyTorch's default.

    This is the network of information flow's public code (Passalis et al., CVPR 2020). Deviations of that code from He et al. 2016b: the
    stem has BatchNorm and ReLU, no BatchNorm and ReLU follow the last block, and with ``activated_shortcuts`` a shortcut begins after the
    first BatchNorm and ReLU of its block.

    Args:
        task: images of any size.
        blocks: number of blocks of each stage.
        widths: channels of each stage.
        activated_shortcuts: true as in the public code; false as in the paper: identity shortcuts pass the input of their block.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(self, task: Task, *, blocks: Sequence[int], widths: Sequence[int], activated_shortcuts: bool) -> None:
        require(len(widths) > 0 and all(w > 0 for w in widths), "widths", "must be one or more positive integers", widths)
        valid = len(blocks) == len(widths) and all(0 < n <= 1000 for n in blocks)
        require(valid, "blocks", f"must be a number from 1 to 1000 for each of the {len(widths)} widths", blocks)
        stages: list[nn.Sequential] = []
        for in_channels, width, num_blocks in zip((widths[0], *widths), widths, blocks):
            shapes = [(in_channels, width, 2 if stages else 1), *[(width, width, 1)] * (num_blocks - 1)]
            stages.append(nn.Sequential(*[PreActBlock(*shape, activated=activated_shortcuts) for shape in shapes]))
        stem = nn.Sequential(nn.Conv2d(task.shape[0], widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages[0] = nn.Sequential(stem, *stages[0])
        super().__init__(task, stages, GlobalAveragePool(), nn.Linear(widths[-1], task.num_classes), widths[-1])
        self.num_blocks, self.activated = blocks[-1], activated_shortcuts

    def extra_stage(self) -> nn.Module:
        """New pre-activation blocks with stride 1, see :meth:`fedkd.models.base.Classifier.extra_stage`."""
        width = self.embedding_size
        return nn.Sequential(*[PreActBlock(width, width, 1, activated=self.activated) for _ in range(self.num_blocks)])


class WideResNet(ImageClassifier):
    """A 3x3 stem of 16 channels, three stages of pre-activation blocks of 16k, 32k and 64k channels, and one linear head.

    The stem is part of the first stage; every later stage begins with stride 2. The output of a stage is the sum of its last block. The
    last BatchNorm, ReLU and global average pooling are ``embed``.

    Parameters for CIFAR-100: WRN-16-1 has 180,916, WRN-16-2 has 703,284 (0.70 M), WRN-40-1 has 569,780 (0.57 M), WRN-40-2 has 2,255,156
    (2.26 M, or 2.25 M truncated). The 2.2 M in the paper are those of WRN-40-2 for CIFAR-10, 2,243,546.

    Initialization: convolutions as He et al. 2015 (normal, fan out), head as PyTorch's default with biases 0. There is no dropout, as in
    the distillation benchmarks (RepDistiller).

    Args:
        task: images of any size.
        depth: number of layers: 6n + 4 for n blocks per stage, 1 <= n <= 200.
        widen_factor: k, > 0.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(self, task: Task, *, depth: int, widen_factor: int) -> None:
        require(10 <= depth <= 1204 and depth % 6 == 4, "depth", "must be 6n + 4 for 1 <= n <= 200 (10, 16, ..., 1204)", depth)
        require(widen_factor > 0, "widen_factor", "must be > 0", widen_factor)
        widths, num_blocks = [width * widen_factor for width in (16, 32, 64)], (depth - 4) // 6
        stages = []
        for in_channels, width, stride in zip((16, *widths), widths, (1, 2, 2)):
            shapes = [(in_channels, width, stride), *[(width, width, 1)] * (num_blocks - 1)]
            stages.append(nn.Sequential(*[PreActBlock(*shape, activated=False) for shape in shapes]))
        stages[0] = nn.Sequential(nn.Conv2d(task.shape[0], 16, 3, 1, 1, bias=False), *stages[0])
        embed = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU(), GlobalAveragePool())
        head = nn.Linear(widths[-1], task.num_classes)
        super().__init__(task, stages, embed, head, widths[-1])
        self.num_blocks = num_blocks
        init_fan_out(self)
        nn.init.zeros_(head.bias)

    def extra_stage(self) -> nn.Module:
        """New pre-activation blocks with stride 1, see :meth:`fedkd.models.base.Classifier.extra_stage`."""
        width = self.embedding_size
        return init_fan_out(nn.Sequential(*[PreActBlock(width, width, 1, activated=False) for _ in range(self.num_blocks)]))
