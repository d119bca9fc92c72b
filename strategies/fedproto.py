"""FedProto: clients exchange their mean embedding of each class, and keep their models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.strategy import Strategy
from fedkd.tensor_ops import one_hot
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class FedProto(Strategy):
    """``CE + weight mean_d (z_d - P[y]_d)^2``, P[y] the clients' mean embedding of class y; only P travels, and there is no global model.

    Tan et al.: FedProto: Federated prototype learning across heterogeneous clients, AAAI 2022. With weight 0 every client trains alone.

    Deviations: prototypes are means over the steps of a client's round, as they are computed, and not over a pass of their own after
    it. The mean over clients counts every example of a class once (``examples``) or every client that has the
    class once (``uniform``): the switch ``aggregation``. A class that nobody has reported pulls nobody.

    Args:
        weight: >= 0, of the distance to the prototypes.
    """

    client_summary: ClassVar[str] = "distance to the label's mean embedding"
    server_summary: ClassVar[str] = "mean of embeddings by label"
    secure_aggregation: ClassVar[bool] = False
    broadcast_parts: ClassVar[tuple[str, ...]] = ("prototypes",)

    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, "weight", "must be >= 0 (0 lets every client train alone)", self.weight)

    @property
    def model_heterogeneity(self) -> Literal["none", "same_embedding_size", "any"]:
        """Prototypes are compared with embeddings."""
        return "same_embedding_size"

    def init_server(self, server: Server) -> State:
        classes, like = server.task.num_classes, {"dtype": server.dtype, "device": server.device}
        return {"prototypes": {"mean": torch.zeros(classes, server.model.embedding_size, **like), "known": torch.zeros(classes, **like)}}

    def init_client(self, client: Client) -> State:
        return {"model": self.shared_parameters(client.model, client.initial)}

    def initial_weights(self, client: Client, broadcast: State, client_state: State) -> Tensors:
        return super().initial_weights(client, client_state, client_state)

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        output, prototypes = model(batch.x), broadcast["prototypes"]
        distance = (output.embedding - prototypes["mean"][batch.y]).square().mean(-1) * prototypes["known"][batch.y]
        label = one_hot(batch.y, output.logits.shape[-1]).to(output.logits.dtype)  # [B, C]
        value = cross_entropy(output.logits, batch.y).mean() + self.weight * distance.mean()
        return value, {"embeddings": label.T @ output.embedding.detach(), "labels": label.sum(0)}

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        model, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        mean = metric_sums["embeddings"] / metric_sums["labels"].clamp(min=1)[:, None]
        return {"prototypes": {"mean": mean, "count": metric_sums["labels"]}}, {**kept, **model}

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        counts = torch.stack([u.state["prototypes"]["count"] for u in updates])  # [K, C]
        means = torch.stack([u.state["prototypes"]["mean"] for u in updates])  # [K, C, D]
        weights = counts if self.aggregation == "examples" else (counts > 0).to(counts.dtype)
        total = weights.sum(0)
        fresh = (weights[..., None] * means).sum(0) / total.clamp(min=1)[:, None]
        before, reported = state["prototypes"], total > 0
        mean = torch.where(reported[:, None], fresh, before["mean"])
        return {"prototypes": {"mean": mean, "known": torch.maximum(before["known"], reported.to(mean.dtype))}}, {}

    def global_model(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        return None
