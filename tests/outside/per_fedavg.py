"""Per-FedAvg: meta-learning of an initial model that adapts to each client in a few steps."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.phase import Phase
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State


@dataclass(kw_only=True)
class PerFedAvg(Strategy):
    """Client: ``CE at w - alpha grad CE(w; D1), on D2``, where D1 and D2 are the halves of a batch. Test: w after steps of SGD with alpha.

    The gradient is that of first order (FO-MAML): the inner gradient is a constant. alpha = 0 is FedAvg.

    Source:
        Fallah, Mokhtari, Ozdaglar: Personalized federated learning with theoretical guarantees: A model-agnostic meta-learning approach,
        NeurIPS 2020.

    Args:
        alpha: Learning rate of the adaptation, >= 0. 0 switches it off.
        adapt_steps: Steps of the adaptation before a client is tested, >= 0.

    Deviations:
        - The halves of a batch of an odd size share one example.
    """

    client_summary: ClassVar[str] = "loss after one step of adaptation"

    alpha: float
    adapt_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "alpha", "must be >= 0 (0 is FedAvg)", self.alpha)
        require(self.adapt_steps >= 0, "adapt_steps", "must be >= 0", self.adapt_steps)

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy of the second half of a batch, at weights that were adapted to the first half."""
        if self.alpha == 0:
            return super().loss(model, batch, broadcast, client_state)
        half = (len(batch.y) + 1) // 2
        gradient = model.gradient(lambda same: cross_entropy(same(batch.x[:half]).logits, batch.y[:half]).mean())
        adapted = model.moved({name: -self.alpha * value for name, value in gradient.items()})
        return cross_entropy(adapted(batch.x[-half:]).logits, batch.y[-half:]).mean(), {}

    def personalization(self, client: Client, broadcast: State, client_state: State) -> list[Phase]:
        """The adaptation to a client that is tested."""
        if self.alpha == 0 or self.adapt_steps == 0:
            return []
        batches = replace(client, seed=client.seed / "adaptation", num_steps=self.adapt_steps).batches()
        return [Phase(batches, super().loss, optimizer=self.inner_optimizer)]

    def inner_optimizer(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """SGD with alpha, whatever the clients' learning rate ``lr``."""
        return torch.optim.SGD(parameters, lr=self.alpha)
