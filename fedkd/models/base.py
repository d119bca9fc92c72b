"""The network of a client: stages, then an embedding, then a head that reads it."""

from torch import Tensor, nn

from fedkd.errors import require
from fedkd.types import Output, Task


class Classifier(nn.Module):
    """Images [B, channels, height, width] to an :class:`Output`.

    A subclass gives the three parts and nothing else, so that a strategy can share the head and a distiller can ask for
    stages without knowing the network's name.

    Args:
        task: what is to be classified.
        stages: modules applied one after the other; their outputs are ``Output.stages``.
        embed: from the last stage's output to the embedding [B, D].
        head: from the embedding to the logits [B, C].
        embedding_size: D.
    """

    def __init__(self, task: Task, stages: list[nn.Module], embed: nn.Module, head: nn.Module, embedding_size: int) -> None:
        super().__init__()
        self.task = task
        self.stages = nn.ModuleList(stages)
        self.embed = embed
        self.head = head
        self.embedding_size = embedding_size

    def forward(self, x: Tensor) -> Output:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        z = self.embed(x)
        return Output(self.head(z), z, tuple(maps))

    def extra_stage(self) -> nn.Module:
        """One more stage of the last width and stride 1, freshly initialised, not part of this network: same blocks and depth as the last.

        It stands between ``stages[-1]`` and a fresh ``embed``, where a distiller's branch begins from the last stage.

        Raises:
            ConfigError: this kind of network has none.
        """
        known = "ResNet, WideResNet, PreActResNet, TorchvisionResNet, VGG, MobileNetV2, ShuffleNetV1, ShuffleNetV2, FedGenCNN"
        require(False, "model", f"must be a network with an extra stage ({known})", type(self).__name__)
