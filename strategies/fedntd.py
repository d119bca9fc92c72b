"""FedNTD: clients keep what the broadcast says of the classes that an example does not have."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedkd.errors import require
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.decoupled_kl import not_true_divergence
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State


@dataclass(kw_only=True)
class FedNTD(Strategy):
    """``CE + beta tau^2 KL(softmax(z_g / tau) || softmax(z / tau))`` over the classes that are not the label; beta = 0 is FedAvg.

    Lee, Jeong, Shin, Bae, Yun: Preservation of the global knowledge by not-true distillation in federated learning, NeurIPS 2022.
    z_g are the logits of the broadcast in eval mode, which do not learn.

    Deviations: where BatchNorm statistics stay with the clients, the broadcast has those that the client begins with (the paper's
    networks have no BatchNorm).

    Args:
        beta: >= 0, weight of the divergence.
        tau: > 0, temperature.
    """

    client_summary: ClassVar[str] = "divergence from the broadcast on the other classes"

    beta: float
    tau: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, "beta", "must be >= 0 (0 is FedAvg)", self.beta)
        require(self.tau > 0, "tau", "must be > 0 (the paper's is 1)", self.tau)

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        logits = model(batch.x).logits
        broadcast = model.at({**broadcast["model"], **client_state.get("local", {})})(batch.x).logits.detach()
        distance = not_true_divergence(broadcast, logits, batch.y, self.tau).mean()
        return cross_entropy(logits, batch.y).mean() + self.beta * distance, {}
