"""ResNets for small images (He et al. 2016, section 4.2): depth 8, 14, 20, 32, 44, 56, 110."""

from collections.abc import Sequence

from torch import Tensor, nn

from fedkd.check import require
from fedkd.models.classifier import Classifier
from fedkd.models.layers import GlobalAveragePool, fan_out
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
        ValueError: naming the key, the rule and the value.
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
        fan_out(self)

    def extra_stage(self) -> nn.Module:
        width = self.embedding_size
        return fan_out(nn.Sequential(*[BasicBlock(width, width, 1) for _ in self.stages[-1]]))
