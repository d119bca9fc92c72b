"""FedDyn: a dynamic regularizer aligns the minima of the clients with that of the federation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, trained_names
from fedkd.types import Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class FedDyn(Strategy):
    """Client: ``CE(z, y) + a_k <v, correction h_k - w> + a_k/2 ||v||^2``, then ``h_k <- h_k + v_k - w``.

    Server: ``w <- sum_k p_k v_k + correction (1/N) sum_i h_i``, where the last sum is over all N clients.

    v are the local weights and w the broadcast. h_k is the sum of the client's changes so far. a_k is alpha, or with
    ``alpha_scaling=examples`` alpha times the mean number of training examples of a client over n_k. The broadcast w, which is tested, is
    not the mean of the round's models; that is the column ``global_test_accuracy_mean``. alpha = 0 and correction = 0 are FedAvg.

    Source:
        Acar, Zhao, Navarro, Mattina, Whatmough, Saligrama: Federated learning based on dynamic regularization, ICLR 2021.
        Public code: alpemreacar/FedDyn @ 48a19fa.

    Args:
        alpha: Weight of the regularizer, >= 0.
        correction: Weight of the sums of changes, at clients and server, >= 0. 1 is the paper's, 0 switches them off.
        alpha_scaling: ``examples`` adapts alpha to the client's number of examples, as in the public code; ``none`` is the paper's.

    Deviations:
        - h_k is the paper's ``-g_k / alpha``, as in the public code.
        - From the public code: its plot shows the mean of the last models of all clients, which no server has under partial participation.
        - From the public code: gradients are clipped at a norm of 10 with ``optimizer=clipped_sgd`` alone.
        - Only parameters that are shared are regularized.
    """

    client_summary: ClassVar[str] = "dynamic regularizer"
    server_summary: ClassVar[str] = "mean of models, plus the mean of all changes"

    alpha: float
    correction: float
    alpha_scaling: Literal["examples", "none"]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "alpha", "must be >= 0", self.alpha)
        require(self.correction >= 0, "correction", "must be >= 0 (1 is the paper's)", self.correction)

    def init_server(self, server: Server) -> State:
        """The model, and a mean change of zeros."""
        return {**super().init_server(server), "changes": self.zeros(server)}

    def init_client(self, client: Client) -> State:
        """A sum of changes of zeros."""
        return {"changes": self.zeros(client)}

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        """a_k for every step [S]."""
        scale = client.num_total_examples / client.num_clients / len(client.data) if self.alpha_scaling == "examples" else 1.0
        return {"alpha": torch.full((len(batches),), self.alpha * scale, dtype=client.dtype, device=client.device)}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy and the dynamic regularizer."""
        value, metrics = super().loss(model, batch, broadcast, client_state)
        if self.alpha == 0:
            return value, metrics
        w, h, v = broadcast["model"], client_state["changes"], model.parameters()
        term = sum((v[name] * (self.correction * h[name] - w[name] + v[name] / 2)).sum() for name in h)
        return value + batch.alpha * term, metrics

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the model. Keep the sum of changes."""
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        changes = {name: h + trained[name] - broadcast["model"][name] for name, h in client_state["changes"].items()}
        return sent, {**kept, "changes": changes}

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the models, and add the mean change of all clients."""
        after, metrics = super().aggregate(server, state, updates, server_round)
        w, mean = state["model"], after["model"]
        moves = {name: sum(u.state["model"][name] - w[name] for u in updates) for name in state["changes"]}
        changes = {name: h + moves[name] / server.num_clients for name, h in state["changes"].items()}
        if self.correction == 0:
            return {**after, "changes": changes}, metrics
        moved = {name: mean[name] + self.correction * h for name, h in changes.items()}
        return {**after, "model": {**mean, **moved}, "mean": mean, "changes": changes}, metrics

    def zeros(self, participant: Client | Server) -> Tensors:
        """Zeros for every shared parameter that is trained."""
        parameters = {name: torch.zeros_like(participant.initial[name]) for name in trained_names(participant.model)}
        return self.shared_parameters(participant.model, parameters)
