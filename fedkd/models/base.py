"""The base class of networks: stages, an embedding, and a head."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from fedkd.errors import ConfigError
from fedkd.types import INPUTS, Input, Output, Task

WITH_EXTRA_STAGE = (
    "ResNet, WideResNet, PreActResNet, TorchvisionResNet, VGG, MobileNetV2, ShuffleNetV1, ShuffleNetV2, "
    "VisionTransformer, MLPMixer, FedGenCNN"
)


class Classifier(nn.Module):
    """A network from images [B, channels, height, width] to an :class:`~fedkd.types.Output`.

    A subclass passes the three parts to this class. A strategy can so share the head alone, and a distillation method can use the stages,
    without knowing the network.

    Args:
        task: the classification task.
        stages: modules that are applied one after the other. Their outputs are ``Output.stages``.
        embed: from the output of the last stage to the embedding [B, D].
        head: from the embedding to the logits [B, C].
        embedding_size: D.
    """

    inputs: ClassVar[tuple[Input, ...]] = INPUTS
    """The kinds of inputs that the network reads."""

    def __init__(self, task: Task, stages: Sequence[nn.Module], embed: nn.Module, head: nn.Module, embedding_size: int) -> None:
        super().__init__()
        self.task = task
        self.stages = nn.ModuleList(stages)
        self.embed = embed
        self.head = head
        self.embedding_size = embedding_size

    def forward(self, x: Tensor) -> Output:  # [B, channels, height, width]
        """Logits, embedding, and the outputs of all stages."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        z = self.embed(x)
        return Output(self.head(z), z, tuple(maps))

    def extra_stage(self) -> nn.Module:
        """A new stage like the last one, with stride 1 and the same width. It is freshly initialized and not part of this network.

        Distillation methods place it between the last stage and a new ``embed``, in branches that begin at the last stage.

        Raises:
            ConfigError: this kind of network has no extra stage.
        """
        raise ConfigError(f"model must be a network with an extra stage ({WITH_EXTRA_STAGE}), got {type(self).__name__!r}")


class ImageClassifier(Classifier):
    """A network that reads images alone."""

    inputs = ("image",)
