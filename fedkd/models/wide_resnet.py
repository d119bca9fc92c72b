"""Wide residual networks for small images (Zagoruyko & Komodakis 2016): WRN-depth-width, 16-1, 16-2, 40-1, 40-2 and the like."""

from torch import nn

from fedkd.check import require
from fedkd.models.classifier import Classifier
from fedkd.models.layers import GlobalAveragePool, fan_out
from fedkd.models.preact_resnet import PreActBlock
from fedkd.types import Task


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
        ValueError: naming the key, the rule and the value.
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
        fan_out(self)
        nn.init.zeros_(self.head.bias)

    def extra_stage(self) -> nn.Module:
        width = self.embedding_size
        return fan_out(nn.Sequential(*[PreActBlock(width, width, 1, activated=False) for _ in self.stages[-1]]))
