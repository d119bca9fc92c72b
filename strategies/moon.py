"""MOON: clients draw near the broadcast's embedding of an image, and away from that of their own last model."""

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
from fedkd.types import Metrics, State, Tensors


@dataclass(kw_only=True)
class Moon(Strategy):
    """``CE - mu ln(e^(cos(z, z_g)/tau) / (e^(cos(z, z_g)/tau) + e^(cos(z, z_p)/tau)))``; mu = 0 is FedAvg.

    Li, He, Song: Model-contrastive federated learning, CVPR 2021. z, z_g and z_p are what the head reads, of the
    local model, the broadcast and the model that the client sent the last time, the latter two in eval mode and frozen. A client
    that trains for the first time has no such model and no such term.

    Deviations: z is the network's own embedding; the paper puts a two-layer projection of 256 units before the head, which a network
    in ``conf/model`` may have. One earlier model is kept (the paper's buffer is of one too; its code can hold more). Where BatchNorm
    statistics stay with the clients, the broadcast has those that the client begins with.

    Args:
        mu: >= 0, weight of the contrastive term.
        tau: > 0, temperature.
    """

    client_summary: ClassVar[str] = "contrast with the broadcast and the last own model"

    mu: float
    tau: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mu >= 0, "mu", "must be >= 0 (0 is FedAvg)", self.mu)
        require(self.tau > 0, "tau", "must be > 0 (the paper's is 0.5)", self.tau)

    def init_client(self, client: Client) -> State:
        return {"previous": {key: value.clone() for key, value in client.initial.items()}}

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        mu = self.mu if int(client_state["client"]["last_round"]) > 0 else 0.0
        return {"mu": torch.full((len(batches),), mu, dtype=client.dtype, device=client.device)}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        output = model(batch.x)
        broadcast = model.at({**broadcast["model"], **client_state.get("local", {})})(batch.x).embedding.detach()
        previous = model.at(client_state["previous"])(batch.x).embedding.detach()
        contrast = model_contrastive(output.embedding, broadcast, previous, self.tau).mean()
        return cross_entropy(output.logits, batch.y).mean() + batch.mu * contrast, {}

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        return sent, {**kept, "previous": trained}
