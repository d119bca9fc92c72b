"""FedProx: local training that stays near the broadcast."""

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
    """``CE + mu / 2 ||w - w_global||^2`` over shared parameters (Li et al., MLSys 2020, equation 2); mu = 0 is FedAvg.

    Deviations: the inexactness that the paper allows each client is not simulated here; clients take the configured steps.
    FedGen's public code adds a weight decay of 0.001 to its FedProx alone: ``weight_decay``, 0 as shipped.

    Args:
        mu: >= 0, weight of the proximal term.
        weight_decay: >= 0, weight of ``1/2 ||w||^2`` beside it.
    """

    client_summary: ClassVar[str] = "distance to the broadcast weights"

    mu: float
    weight_decay: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mu >= 0, "mu", "must be >= 0 (0 is FedAvg)", self.mu)
        require(self.weight_decay >= 0, "weight_decay", "must be >= 0 (0 is none)", self.weight_decay)

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        value, metrics = super().loss(model, batch, broadcast, client_state)
        weights = model.parameters()
        distance = sum((w - broadcast["model"][name]).square().sum() for name, w in weights.items() if name in broadcast["model"])
        norm = sum(w.square().sum() for w in weights.values())
        return value + self.mu / 2 * distance + self.weight_decay / 2 * norm, metrics
