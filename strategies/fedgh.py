"""FedGH: the server trains one head on the clients' mean embeddings, and installs it in every client."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.prototypes import class_means
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch, shuffled_epochs
from fedkd.training.functional_model import FunctionalModel, submodule_tensors
from fedkd.training.loop import fit
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Metrics, State, Target, Tensors, Update


@dataclass(kw_only=True)
class FedGH(Strategy):
    """Client: ``CE(h(f_k(x)), y)``, beginning with the server's head h.

    Server: ``CE(h(q), y)`` over the clients' mean embeddings q of class y.

    f_k are the layers of client k before the head. They stay with the client, and may differ between clients. Only mean embeddings travel
    up and the head down, so there is no global model.

    Source:
        Yi, Wang, Liu, Shi, Yu: FedGH: Heterogeneous federated learning with generalized global header, ACM MM 2023.
        Public code: TsingZ0/HtFLlib @ e959261, LipingYi/FedGH @ ff50ac0.

    Args:
        server_epochs: Passes over the clients' embeddings in a round, >= 0. 0 leaves the head as it is.
        server_batch_size: Embeddings per step, > 0.
        head_optimizer: ``parameters -> optimizer`` of the head, made anew in each round.

    Deviations:
        - Embeddings are means over a client's examples in eval mode. HtFLlib takes them so, and the authors' code the mean of the means of
          batches.
        - From the authors' code: the head is trained. There the server steps an optimizer that does not hold the head's parameters, so the
          head keeps its random initial values, as with ``server_epochs=0``.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label",)
    client_summary: ClassVar[str] = "head of the server"
    server_summary: ClassVar[str] = "training of a head on the clients' mean embeddings"
    secure_aggregation: ClassVar[bool] = False
    averages_models: ClassVar[bool] = False
    trains_head: ClassVar[bool] = False

    server_epochs: int
    server_batch_size: int
    head_optimizer: OptimizerFactory

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.shared_layers == "head", "shared_layers", "must be head, which the server trains", self.shared_layers)
        require(self.server_epochs >= 0, "server_epochs", "must be >= 0 (0 leaves the head as it is)", self.server_epochs)
        require(self.server_batch_size > 0, "server_batch_size", "must be > 0", self.server_batch_size)

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the mean embedding of each class, with the number of examples."""
        mean, count = class_means(client, trained)
        return {"embeddings": {"mean": mean, "count": count}}, client_state

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Train the head."""
        if self.server_epochs == 0:
            return state, {}
        counts = torch.stack([u.state["embeddings"]["count"] for u in updates])  # [K, C]
        means = torch.stack([u.state["embeddings"]["mean"] for u in updates])  # [K, C, D]
        client, label = torch.nonzero(counts, as_tuple=True)
        batches = shuffled_epochs(label, means[client, label], self.server_epochs, self.server_batch_size, (server.seed / "order").torch())
        fitted = fit(server.model.head, submodule_tensors(state["model"], "head"), batches, head_loss, self.head_optimizer)
        head = {f"head.{key}": value for key, value in fitted.tensors.items()}
        return {**state, "model": head}, {"head_loss": fitted.metric_sums["loss"] / len(batches)}

    def server_steps(self, server: Server, updates: Sequence[Update], server_round: int) -> int:
        """The steps of all passes over the clients' mean embeddings."""
        number = sum(int((u.state["embeddings"]["count"] > 0).sum()) for u in updates)
        return self.server_epochs * -(-number // min(self.server_batch_size, number))


def head_loss(model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
    """Cross-entropy of the head on embeddings."""
    return cross_entropy(model(batch.values), batch.y).mean(), {}
