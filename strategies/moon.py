"""MOON: a contrastive term pulls embeddings to the global model's and away from the previous local model's."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.losses.contrastive import model_contrastive
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State, Target, Tensors


@dataclass(kw_only=True)
class Moon(Strategy):
    """Client: ``CE(z, y) - mu ln(e^(cos(v, v_g)/tau) / (e^(cos(v, v_g)/tau) + e^(cos(v, v_p)/tau)))``.

    Server: ``w <- sum_k (n_k / n) w_k``.

    v, v_g and v_p are embeddings of the same image, i.e. the inputs of the head. They come from the local model, the broadcast model, and
    the model that this client sent last. The latter two run in eval mode without gradient. A client that trains for the first time has no
    previous model and no contrastive term. mu = 0 is FedAvg.

    Source:
        Li, He, Song: Model-contrastive federated learning, CVPR 2021.
        Public code: QinbinLi/MOON @ 8fcba3c.

    Args:
        mu: Weight of the contrastive term, >= 0. The paper tunes it in {0.1, 1, 5, 10}. 0 switches it off.
        tau: Temperature, > 0. The paper's value is 0.5.

    Deviations:
        - v is the network's own embedding. The paper's networks have a projection of two layers with 256 outputs before the classifier;
          ``model=moon_cnn`` is one of them.
        - From the public code: a client without an earlier round has no contrastive term. From the second round on, the public code
          contrasts it with its random initial network.
        - From the public code: one previous model is kept, as in the paper's experiments. The public code can keep more.
        - Where BatchNorm statistics are local, the broadcast model uses the client's statistics at the start of the round.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label", "multi_label")
    client_summary: ClassVar[str] = "contrast with the broadcast and the previous local model"

    mu: float
    tau: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mu >= 0, "mu", "must be >= 0 (0 is FedAvg)", self.mu)
        require(self.tau > 0, "tau", "must be > 0 (the paper's is 0.5)", self.tau)

    def init_client(self, client: Client) -> State:
        """The initial weights as previous model. It is not used before the client has trained once."""
        return {"previous": {key: value.clone() for key, value in client.initial.items()}}

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        """``mu`` for every step, or 0 where the client has no previous model."""
        mu = self.mu if int(client_state["client"]["last_round"]) > 0 else 0.0
        return {"mu": torch.full((len(batches),), mu, dtype=client.dtype, device=client.device)}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy and the model-contrastive term."""
        output = model(batch.x)
        global_embedding = model.at({**broadcast["model"], **client_state.get("local", {})})(batch.x).embedding.detach()
        previous = model.at(client_state["previous"])(batch.x).embedding.detach()
        contrast = model_contrastive(output.embedding, global_embedding, previous, self.tau).mean()
        return cross_entropy(output.logits, batch.y).mean() + batch.mu * contrast, {}

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the model and keep it as the previous model."""
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        return sent, {**kept, "previous": trained}
