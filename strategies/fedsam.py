"""FedSAM: clients seek flat minima by sharpness-aware minimization."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State, Tensors


@dataclass(kw_only=True)
class FedSAM(Strategy):
    """Client: ``CE at w + rho g / ||g||``, where g is the gradient of CE at w, as a constant.

    Server: ``w <- sum_k (n_k / n) w_k``.

    The optimizer takes its step from w with the gradient at the moved weights. With ``adaptive``, a parameter with ``weight`` in its name
    moves by ``rho t^2 g / ||u||`` with ``t = |w| + eta``, where u = t g for these and u = g for the others (ASAM). rho = 0 is FedAvg.

    Source:
        Caldarola, Caputo, Ciccone: Improving generalization in federated learning by seeking flat minima, ECCV 2022.
        Public code: debcaldarola/fedsam @ 64bbf93.
        Qu, Li, Duan, Liu, Tang, Lu: Generalized federated learning via sharpness aware minimization, ICML 2022.

    Args:
        rho: Length of the move, >= 0. 0 switches it off.
        adaptive: Scale the move by the size of each weight (ASAM).
        eta: Added to the size of each weight with ``adaptive``, >= 0.

    Deviations:
        - BatchNorm statistics move once per step, with the second pass. In the public code they move in both passes.
        - Averaging of the server's last models (SWA) is not implemented.
    """

    client_summary: ClassVar[str] = "gradient at weights that are moved uphill"

    rho: float
    adaptive: bool
    eta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rho >= 0, "rho", "must be >= 0 (0 is FedAvg)", self.rho)
        require(self.eta >= 0, "eta", "must be >= 0", self.eta)

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy at the moved weights."""
        if self.rho == 0:
            return super().loss(model, batch, broadcast, client_state)
        gradient = model.gradient(lambda same: cross_entropy(same(batch.x).logits, batch.y).mean())
        return cross_entropy(model.moved(self.move(model.parameters(), gradient))(batch.x).logits, batch.y).mean(), {}

    def move(self, parameters: Tensors, gradient: Tensors) -> Tensors:
        """The change of each parameter, as a constant."""
        scales = {
            name: w.detach().abs() + self.eta if self.adaptive and "weight" in name else torch.ones_like(w.detach())
            for name, w in parameters.items()
        }
        norm = torch.stack([(scales[name] * g).square().sum() for name, g in gradient.items()]).sum().sqrt()
        return {name: self.rho * scales[name].square() * g / (norm + 1e-16) for name, g in gradient.items()}
