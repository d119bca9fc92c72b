"""A network whose embedding is averaged to another size, so that unlike networks have embeddings of one size."""

from torch import Tensor, nn

from fedkd.models.base import Classifier


class PooledEmbedding(Classifier):
    """A network with adaptive average pooling between its embedding and a new head.

    The benchmark HtFLlib places such a pooling to 512 numbers in front of every head. Each number of the new embedding is the mean of
    neighboring numbers of the old one; an old embedding that is smaller is repeated. The pooling has no parameters. Initialization of the
    head: PyTorch's default.

    Source:
        Public code: TsingZ0/HtFLlib.

    Args:
        network: the network. Its stages are used, and its head is not.
        embedding_size: D of the new embedding, > 0.
    """

    def __init__(self, network: Classifier, embedding_size: int) -> None:
        embed = nn.Sequential(network.embed, Pool(embedding_size))
        super().__init__(network.task, list(network.stages), embed, nn.Linear(embedding_size, network.task.num_classes), embedding_size)


class Pool(nn.Module):
    """Adaptive average pooling of embeddings.

    Args:
        size: numbers of an embedding afterwards.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, z: Tensor) -> Tensor:  # [B, D] -> [B, size]
        """Means of neighboring numbers."""
        if z.shape[-1] % self.size == 0:
            return z.unflatten(-1, (self.size, -1)).mean(-1)  # the same, and fast inside ``torch.vmap``
        return nn.functional.adaptive_avg_pool1d(z, self.size)
