"""Residual networks for small images: ResNet (He et al., 2016), pre-activation ResNet, and wide ResNet (Zagoruyko and Komodakis, 2016)."""

from collections.abc import Sequence

from torch import Tensor, nn

from fedkd.errors import require
from fedkd.models.base import Classifier
from fedkd.models.layers import GlobalAveragePool, init_fan_out
from fedkd.types import Task


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm, added to a shortcut; ReLU between them and after the sum.

    The shortcut is the identity, or where the shape changes a 1x1 convolution with BatchNorm (option B).

    Args:
        before: channels of the input.
        width: channels of the output.
        stride: of the first convolution: 2 halves height and width (rounded up).
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        same = stride == 1 and before == width
        projection = [] if same else [nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)]
        self.shortcut = nn.Sequential(*projection)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # [B, before, H, W] -> [B, width, H / stride, W / stride]
        return self.relu(self.residual(x) + self.shortcut(x))


class ResNet(Classifier):
    """A 3x3 stem, three stages of basic blocks, global average pooling and one linear head.

    The stem belongs to the first stage; every later stage begins with stride 2. The embedding is the pooled map, its size the
    last width. With widths (16, 32, 64): depth 8 has 78,042 parameters for CIFAR-10 and 83,892 for CIFAR-100, depth 20 272,474
    and 278,324, depth 56 855,770 and 861,620, depth 110 1,730,714 and 1,736,564. The wide ones of the distillation benchmarks
    (RepDistiller) have a stem of 32 and widths (64, 128, 256): for CIFAR-100, depth 8 1,233,540 and depth 32 7,433,860.

    Convolutions begin as in He et al. 2015 (normal, fan out), the head as PyTorch's. Deviations: He et al. have no parameters in
    shortcuts (option A); these are the benchmarks' option B. A stem that is not as wide as the first stage gives that a projection.

    Args:
        task: images of any size.
        depth: layers with weights, shortcuts not counted: 6n + 2 for n >= 1 blocks a stage.
        widths: channels of the three stages.
        stem: channels of the stem; null: as many as the first stage. Narrow networks can so stand on one common stem.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """

    def __init__(self, task: Task, *, depth: int, widths: Sequence[int], stem: int | None) -> None:
        require(depth >= 8 and depth % 6 == 2, "depth", "must be 6n + 2 for n >= 1 (8, 14, 20, ...)", depth)
        require(len(widths) == 3 and all(w > 0 for w in widths), "widths", "must be three positive integers", widths)
        require(stem is None or stem > 0, "stem", "must be a positive integer, or null for the first of widths", stem)
        stem, blocks = widths[0] if stem is None else stem, (depth - 2) // 6
        stages = []
        for before, width, stride in zip((stem, *widths), widths, (1, 2, 2)):
            rest = [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(BasicBlock(before, width, stride), *rest))
        first = nn.Sequential(nn.Conv2d(task.shape[0], stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        stages[0] = nn.Sequential(first, *stages[0])
        super().__init__(task, stages, GlobalAveragePool(), nn.Linear(widths[-1], task.num_classes), widths[-1])
        self.widths = tuple(widths)
        init_fan_out(self)

    def extra_stage(self) -> nn.Module:
        width = self.embedding_size
        return init_fan_out(nn.Sequential(*[BasicBlock(width, width, 1) for _ in self.stages[-1]]))


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions, whose output is added to a shortcut; nothing after the sum.

    Where the shape changes, the shortcut is a 1x1 convolution of the input after the first BatchNorm and ReLU.

    Args:
        before: channels of the input.
        width: channels of the output.
        stride: of the first convolution.
        activated: elsewhere the shortcut is that input too, and not the bare one.
    """

    def __init__(self, before: int, width: int, stride: int, *, activated: bool) -> None:
        super().__init__()
        self.activated = activated
        self.activation = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
        )  # fmt: skip
        same = stride == 1 and before == width
        self.projection = None if same else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, before, H, W] -> [B, width, H / stride, W / stride]
        active = self.activation(x)
        shortcut = self.projection(active) if self.projection is not None else active if self.activated else x
        return self.residual(active) + shortcut


class PreActResNet(Classifier):
    """A 3x3 stem with BatchNorm and ReLU, stages of pre-activation blocks, global average pooling and one linear head.

    The stem belongs to the first stage; every later stage begins with stride 2. The embedding is the mean of the last map. With two
    blocks in each of (64, 128, 256, 512), ResNet-18: 11,171,274 parameters for CIFAR-10. Layers begin as PyTorch's.

    This is the network of information flow's public code (Passalis et al., CVPR 2020). Deviations of that from He et al. 2016b: the stem is
    normalised too, no BatchNorm and ReLU follow the last block, and with ``activated_shortcuts`` shortcuts come after a block's first ones.

    Args:
        task: images of any size.
        blocks: of each stage.
        widths: channels of each stage.
        activated_shortcuts: the public code's; false: identity shortcuts pass a block's bare input, as in the paper.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """

    def __init__(self, task: Task, *, blocks: Sequence[int], widths: Sequence[int], activated_shortcuts: bool) -> None:
        require(len(widths) > 0 and all(w > 0 for w in widths), "widths", "must be one or more positive integers", widths)
        wanted = len(blocks) == len(widths) and all(n > 0 for n in blocks)
        require(wanted, "blocks", f"must be a positive integer for each of the {len(widths)} widths", blocks)
        stages = []
        for before, width, number in zip((widths[0], *widths), widths, blocks):
            shapes = [(before, width, 2 if stages else 1), *[(width, width, 1)] * (number - 1)]
            stages.append(nn.Sequential(*[PreActBlock(*shape, activated=activated_shortcuts) for shape in shapes]))
        stem = nn.Sequential(nn.Conv2d(task.shape[0], widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages[0] = nn.Sequential(stem, *stages[0])
        super().__init__(task, stages, GlobalAveragePool(), nn.Linear(widths[-1], task.num_classes), widths[-1])
        self.blocks, self.activated = blocks[-1], activated_shortcuts

    def extra_stage(self) -> nn.Module:
        width = self.embedding_size
        return nn.Sequential(*[PreActBlock(width, width, 1, activated=self.activated) for _ in range(self.blocks)])


class WideResNet(Classifier):
    """A 3x3 stem of 16 channels, three stages of pre-activation blocks of 16k, 32k and 64k channels, and one linear head.

    The stem belongs to the first stage; every later stage begins with stride 2. A stage's output is the bare sum of its last block; the
    last BatchNorm, ReLU and global average pooling are ``embed``. Parameters for CIFAR-100: WRN-16-1 180,916, WRN-16-2 703,284
    (0.70 M), WRN-40-1 569,780 (0.57 M), WRN-40-2 2,255,156 (2.26 M, or 2.25 where digits are cut off); the paper's 2.2 M are
    WRN-40-2's 2,243,546 for CIFAR-10.

    Convolutions begin as in He et al. 2015 (normal, fan out), the head as PyTorch's but for biases of 0. There is no dropout, as in the
    distillation benchmarks (RepDistiller).

    Args:
        task: images of any size.
        depth: 6n + 4 for n >= 1 blocks a stage.
        widen_factor: k.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """

    def __init__(self, task: Task, *, depth: int, widen_factor: int) -> None:
        require(depth >= 10 and depth % 6 == 4, "depth", "must be 6n + 4 for n >= 1 (10, 16, 22, ...)", depth)
        require(widen_factor > 0, "widen_factor", "must be > 0", widen_factor)
        widths = [width * widen_factor for width in (16, 32, 64)]
        stages = []
        for before, width, stride in zip((16, *widths), widths, (1, 2, 2)):
            shapes = [(before, width, stride), *[(width, width, 1)] * ((depth - 4) // 6 - 1)]
            stages.append(nn.Sequential(*[PreActBlock(*shape, activated=False) for shape in shapes]))
        stages[0] = nn.Sequential(nn.Conv2d(task.shape[0], 16, 3, 1, 1, bias=False), *stages[0])
        embed = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU(), GlobalAveragePool())
        super().__init__(task, stages, embed, nn.Linear(widths[-1], task.num_classes), widths[-1])
        init_fan_out(self)
        nn.init.zeros_(self.head.bias)

    def extra_stage(self) -> nn.Module:
        width = self.embedding_size
        return init_fan_out(nn.Sequential(*[PreActBlock(width, width, 1, activated=False) for _ in self.stages[-1]]))
