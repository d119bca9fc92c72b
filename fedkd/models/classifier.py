"""The network of a client: stages, then an embedding, then a head that reads it."""

from torch import Tensor, nn

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
