"""The base class of strategies whose clients share mean embeddings of classes and keep their models."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.prototypes import prototype_scores
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.strategy import Strategy
from fedkd.tensor_ops import one_hot
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State, Target, Tensors


@dataclass(kw_only=True)
class PrototypeSharing(Strategy):
    """Clients minimize ``CE(z, y) + weight mean_d (v_d - P[y]_d)^2`` with models of their own.

    A subclass's ``aggregate`` makes the prototypes P.

    Args:
        weight: weight of the distance to the prototypes, >= 0.
        prediction: what ``local_test_accuracy`` measures: the nearest of the ``prototypes``, or the client's own ``head``.
        candidates: classes among which the nearest prototype is chosen: ``all``, or the client's ``own`` training classes.

    Raises:
        ConfigError: ``weight`` is negative, or a choice does not exist.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label",)
    any_shared_layers: ClassVar[bool] = False
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

    def global_model(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        """None: clients keep their models."""
        return None
