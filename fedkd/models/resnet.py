"""ResNets for small images (He et al. 2016, section 4.2): depth 8, 14, 20, 32, 44, 56, 110."""

from collections.abc import Sequence

from torch import Tensor, nn

from fedkd.check import require
from fedkd.models.classifier import Classifier
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


class GlobalAveragePool(nn.Module):
    """Each channel's mean; ``nn.AdaptiveAvgPool2d`` has no fast rule for many networks at once."""

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C]
        return x.mean((2, 3))


class ResNet(Classifier):
    """A 3x3 stem, three stages of basic blocks, global average pooling and one linear head.

    The stem belongs to the first stage; every later stage begins with stride 2. The embedding is the pooled map, its size the
    last width. With widths (16, 32, 64) and option B: depth 8 has 78,042 parameters for CIFAR-10 and 83,892 for CIFAR-100,
    depth 20 272,474 and 278,324, depth 110 1,730,714 and 1,736,564. Convolutions begin as in He et al. 2015 (normal, fan out).

    Args:
        task: images of any size.
        depth: layers with weights, shortcuts not counted: 6n + 2 for n >= 1 blocks a stage.
        widths: channels of the three stages.

    Raises:
        ValueError: naming the key, the rule and the value.
    """

    def __init__(self, task: Task, *, depth: int, widths: Sequence[int]) -> None:
        require(depth >= 8 and depth % 6 == 2, "depth", "must be 6n + 2 for n >= 1 (8, 14, 20, ...)", depth)
        require(len(widths) == 3 and all(w > 0 for w in widths), "widths", "must be three positive integers", widths)
        blocks = (depth - 2) // 6
        stages = []
        for before, width, stride in zip((widths[0], *widths), widths, (1, 2, 2)):
            rest = [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(BasicBlock(before, width, stride), *rest))
        stem = nn.Sequential(nn.Conv2d(task.shape[0], widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages[0] = nn.Sequential(stem, *stages[0])
        super().__init__(task, stages, GlobalAveragePool(), nn.Linear(widths[-1], task.num_classes), widths[-1])
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
