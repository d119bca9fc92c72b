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
from fedkd.tensor_ops import channels_last, one_hot
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, load
from fedkd.types import Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class FedProto(Strategy):
    """Client: ``CE(z, y) + weight mean_d (v_d - P[y]_d)^2``.

    Server: ``P[c] <- sum_k n_kc P_k[c] / sum_k n_kc``.

    v is the embedding, with entries v_d. P[c] is the global prototype of class c, P_k[c] client k's mean embedding of its n_kc examples of
    class c in the round. Only prototypes are shared, so there is no global model. weight = 0 trains every client on its own.

    A client is tested with the class whose prototype has the least ``mean_d (v_d - P[c]_d)^2``, or with its head.

    Source:
        Tan, Long, Liu, Zhou, Lu, Jiang, Zhang: FedProto: Federated prototype learning across heterogeneous clients, AAAI 2022.
        Public code: yuetan031/FedProto @ 97e42e2.

    Args:
        weight: Weight of the distance to the prototypes, >= 0. 0 switches it off.
        prediction: What ``local_test_accuracy`` measures: the nearest of the ``prototypes``, or the client's own ``head``. The other one is
            the column ``local_test_accuracy_head`` or ``local_test_accuracy_prototypes``.
        candidates: Classes among which the nearest prototype is chosen: ``all``, or the client's ``own`` training classes.

    Deviations:
        - Prototypes are means over all local steps of a round, during training. The public code uses those of the last local epoch.
        - The mean over clients weights every example of a class equally (``aggregation=examples``), or every client that has the class
          (``uniform``). The public code does the latter.
        - A class that no client has reported has no prototype and no distance term.
        - The public code reports both predictions, and chooses the nearest prototype among the client's own classes. HtFLlib chooses it
          among all classes.
        - From the public code: its printed accuracies are running totals over clients. Here each client counts once.
        - Before a client has trained, and before the first round, classes without a prototype are chosen last.
    """

    any_shared_layers: ClassVar[bool] = False
    client_summary: ClassVar[str] = "distance to the label's mean embedding"
    server_summary: ClassVar[str] = "mean of embeddings by label"
    secure_aggregation: ClassVar[bool] = False
    broadcast_parts: ClassVar[tuple[str, ...]] = ("prototypes",)

    weight: float
    prediction: Literal["prototypes", "head"]
    candidates: Literal["all", "own"]

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
        """The client's own model, and the classes of its training examples, none before it has trained."""
        own = torch.zeros(client.task.num_classes, dtype=client.dtype, device=client.device)
        return {"model": self.shared_parameters(client.model, client.initial), "classes": {"own": own}}

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
        own = torch.maximum(client_state["classes"]["own"], (metric_sums["labels"] > 0).to(mean.dtype))
        return {"prototypes": {"mean": mean, "count": metric_sums["labels"]}}, {**kept, **model, "classes": {"own": own}}

    def predict_client(self, model: FunctionalModel, x: Tensor, broadcast: State, client_state: State) -> dict[str, Tensor]:
        """Minus the distances to the prototypes, and the logits of the client's head."""
        output, prototypes, own = model(x), broadcast["prototypes"], client_state["classes"]["own"]
        known = prototypes["known"] * (own if self.candidates == "own" else torch.ones_like(own))
        scores = {"prototypes": prototype_scores(output.embedding, prototypes["mean"], known), "head": output.logits}
        return {"": scores.pop(self.prediction), **scores}

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


def prototype_scores(embedding: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
    """Minus the mean squared distance of embeddings [B, D] to prototypes [C, D]. A class that is not ``known`` [C] is below all others."""
    distances = (embedding[:, None] - prototypes).square().mean(-1)
    return torch.where(known > 0, -distances, -distances.amax(1, keepdim=True) - 1)


@torch.no_grad()
def class_means(client: Client, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """The mean embedding of each class of the client's examples [C, D], in eval mode, and the numbers of examples [C].

    Args:
        client: the client.
        tensors: all parameters and buffers of its network.
    """
    load(client.model, tensors)
    model, classes = client.model.eval(), client.task.num_classes
    sums = torch.zeros(classes, client.model.embedding_size, dtype=client.dtype, device=client.device)
    counts = torch.zeros(classes, dtype=client.dtype, device=client.device)
    for index in torch.arange(len(client.data), device=client.device).split(max(client.batch_size, 256)):
        embedding = model(channels_last(client.data.images(index, client.dtype))).embedding
        sums.index_add_(0, client.data.y[index], embedding)
        counts += torch.bincount(client.data.y[index], minlength=classes)
    return sums / counts.clamp(min=1)[:, None], counts
