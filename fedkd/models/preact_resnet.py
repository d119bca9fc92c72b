"""Residual networks whose blocks normalise first (He et al. 2016b), as the teacher of information flow's experiments."""

from collections.abc import Sequence

from torch import Tensor, nn

from fedkd.check import require
from fedkd.models.classifier import Classifier
from fedkd.models.layers import GlobalAveragePool
from fedkd.types import Task


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
        ValueError: naming the key, the rule and the value.
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
