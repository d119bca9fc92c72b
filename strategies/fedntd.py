"""FedNTD: local distillation from the global model over the classes that are not the label."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedkd.errors import require
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.decoupled_kl import not_true_divergence
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State, Target


@dataclass(kw_only=True)
class FedNTD(Strategy):
    """Client: ``CE(z, y) + beta tau^2 KL(softmax(z_g / tau) || softmax(z / tau))``, KL over the C - 1 classes c != y.

    Server: ``w <- sum_k (n_k / n) w_k``.

    z_g are the logits of the broadcast model in eval mode, without gradient. beta = 0 is FedAvg.

    Source:
        Lee, Jeong, Shin, Bae, Yun: Preservation of the global knowledge by not-true distillation in federated learning, NeurIPS 2022.
        Public code: Lee-Gihun/FedNTD @ be00ee5.

    Args:
        beta: Weight of the divergence, >= 0. 0 switches it off.
        tau: Temperature, > 0. 1 in the public code's configurations.

    Deviations:
        - Where BatchNorm statistics are local, the broadcast model uses the client's statistics at the start of the round. The paper's
          networks have no BatchNorm.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label",)
    client_summary: ClassVar[str] = "divergence from the broadcast over the other classes"

    beta: float
    tau: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, "beta", "must be >= 0 (0 is FedAvg)", self.beta)
        require(self.tau > 0, "tau", "must be > 0 (the paper's is 1)", self.tau)

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy and the not-true divergence from the broadcast model."""
        logits = model(batch.x).logits
        global_logits = model.at({**broadcast["model"], **client_state.get("local", {})})(batch.x).logits.detach()
        distance = not_true_divergence(global_logits, logits, batch.y, self.tau).mean()
        return cross_entropy(logits, batch.y).mean() + self.beta * distance, {}
