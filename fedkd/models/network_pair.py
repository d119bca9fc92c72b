"""Two networks of one client as one module."""

from torch import Tensor, nn

from fedkd.models.base import Classifier
from fedkd.types import Output


class NetworkPair(Classifier):
    """A network that is shared with other clients, and a private one. Its output is that of the private one.

    The names of all parameters begin with ``shared.`` or ``private.``. A strategy reaches one network by ``model.submodule("private")``.

    Args:
        shared: the network that clients and server exchange.
        private: the network that stays with the client.
    """

    def __init__(self, shared: Classifier, private: Classifier) -> None:
        nn.Module.__init__(self)
        self.shared, self.private = shared, private
        self.task, self.embedding_size = private.task, private.embedding_size

    def forward(self, x: Tensor) -> Output:  # [B, channels, height, width]
        """The output of the private network."""
        output: Output = self.private(x)
        return output


class PrivateHead(Classifier):
    """A shared network with a second head, which is private. The logits are the sum of both heads' logits.

    Args:
        shared: the network that clients and server exchange.
        private: the second head, from the embedding [B, D] to logits [B, C].
    """

    def __init__(self, shared: Classifier, private: nn.Module) -> None:
        nn.Module.__init__(self)
        self.shared, self.private = shared, private
        self.task, self.embedding_size = shared.task, shared.embedding_size

    def forward(self, x: Tensor) -> Output:  # [B, channels, height, width]
        """The output of the shared network, with the logits of both heads added."""
        output: Output = self.shared(x)
        return Output(output.logits + self.private(output.embedding), output.embedding, output.stages)
