"""FedProx: a proximal term keeps local models near the global model."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedkd.errors import require
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State


@dataclass(kw_only=True)
class FedProx(Strategy):
    """Client: ``CE(z, y) + mu/2 ||w - w_g||^2 + weight_decay/2 ||w||^2``.

    Server: ``w_g <- sum_k (n_k / n) w_k``.

    w are the weights of the local model and w_g those of the broadcast. The distance covers the parameters that are shared. mu = 0 without
    weight decay is FedAvg.

    Source:
        Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated optimization in heterogeneous networks, MLSys 2020, equation 2.
        Public code: litian96/FedProx @ d2a4501.

    Args:
        mu: Weight of the proximal term, >= 0. 0 switches it off.
        weight_decay: Weight of ``1/2 ||w||^2``, >= 0.

    Deviations:
        - From the paper: all clients do the configured number of steps. The paper lets each client do another amount of work.
          ``systems.straggler_rate`` simulates this.
        - From FedGen's public code: its FedProx alone has a weight decay of 0.001. Here ``weight_decay`` is 0 as shipped.
    """

    client_summary: ClassVar[str] = "distance to the broadcast weights"

    mu: float
    weight_decay: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mu >= 0, "mu", "must be >= 0 (0 is FedAvg)", self.mu)
        require(self.weight_decay >= 0, "weight_decay", "must be >= 0 (0 is none)", self.weight_decay)

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy, proximal term and weight decay."""
        value, metrics = super().loss(model, batch, broadcast, client_state)
        weights = model.parameters()
        distance = sum((w - broadcast["model"][name]).square().sum() for name, w in weights.items() if name in broadcast["model"])
        norm = sum(w.square().sum() for w in weights.values())
        return value + self.mu / 2 * distance + self.weight_decay / 2 * norm, metrics
