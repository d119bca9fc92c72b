"""FedProto: clients share their mean embedding of each class and keep their models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
    """Client: ``CE(z, y) + weight mean_d (v_d - P[y]_d)^2``.

    Server: ``P[c] <- sum_k n_kc P_k[c] / sum_k n_kc``.

    v is the embedding, with entries v_d. P[c] is the global prototype of class c, P_k[c] client k's mean embedding of its n_kc examples of
    class c in the round. Only prototypes are shared, so there is no global model. weight = 0 trains every client on its own.

    Source:
        Tan, Long, Liu, Zhou, Lu, Jiang, Zhang: FedProto: Federated prototype learning across heterogeneous clients, AAAI 2022.
        Public code: yuetan031/FedProto @ 97e42e2.

    Args:
        weight: Weight of the distance to the prototypes, >= 0. 0 switches it off.

    Deviations:
        - Prototypes are means over all local steps of a round, during training. The public code uses those of the last local epoch.
        - The mean over clients weights every example of a class equally (``aggregation=examples``), or every client that has the class
          (``uniform``). The public code does the latter.
        - A class that no client has reported has no prototype and no distance term.
        - Predictions come from the client's own head. The public code also reports the nearest prototype.
    """

    any_shared_layers: ClassVar[bool] = False
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
        """``same_embedding_size``: prototypes are compared with embeddings."""
        return "same_embedding_size"

    def init_server(self, server: Server) -> State:
        """Prototypes of zeros, none of them known."""
        classes, zeros = server.task.num_classes, partial(torch.zeros, dtype=server.dtype, device=server.device)
        return {"prototypes": {"mean": zeros(classes, server.model.embedding_size), "known": zeros(classes)}}

    def init_client(self, client: Client) -> State:
        """The client's own model."""
        return {"model": self.shared_parameters(client.model, client.initial)}

    def initial_weights(self, client: Client, broadcast: State, client_state: State) -> Tensors:
        """The client's own model."""
        return super().initial_weights(client, client_state, client_state)

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy and the distance to the label's prototype. Also returns sums of embeddings by label, and label counts."""
        output, prototypes = model(batch.x), broadcast["prototypes"]
        distance = (output.embedding - prototypes["mean"][batch.y]).square().mean(-1) * prototypes["known"][batch.y]
        label = one_hot(batch.y, output.logits.shape[-1]).to(output.logits.dtype)  # [B, C]
        value = cross_entropy(output.logits, batch.y).mean() + self.weight * distance.mean()
        return value, {"embeddings": label.T @ output.embedding.detach(), "labels": label.sum(0)}

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the mean embedding of each class with its count. Keep the model."""
        model, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        mean = metric_sums["embeddings"] / metric_sums["labels"].clamp(min=1)[:, None]
        return {"prototypes": {"mean": mean, "count": metric_sums["labels"]}}, {**kept, **model}

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the prototypes class by class. A class without a report keeps its last prototype."""
        counts = torch.stack([u.state["prototypes"]["count"] for u in updates])  # [K, C]
        means = torch.stack([u.state["prototypes"]["mean"] for u in updates])  # [K, C, D]
        weights = counts if self.aggregation == "examples" else (counts > 0).to(counts.dtype)
        total = weights.sum(0)
        fresh = (weights[..., None] * means).sum(0) / total.clamp(min=1)[:, None]
        before, reported = state["prototypes"], total > 0
        mean = torch.where(reported[:, None], fresh, before["mean"])
        return {"prototypes": {"mean": mean, "known": torch.maximum(before["known"], reported.to(mean.dtype))}}, {}

    def global_model(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        """None: clients keep their models."""
        return None
