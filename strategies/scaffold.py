"""SCAFFOLD: control variates correct the drift of local gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.federation.aggregation import average
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, trained_names
from fedkd.training.optimizers import effective_steps, require_sgd
from fedkd.types import Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class Scaffold(Strategy):
    """Client: ``y <- y - lr (g + correction (c - c_i))``, then ``c_i <- c_i - c + (x - y) / (K lr)``.

    Server: ``x <- x + server_lr sum_k (n_k / n) (y_k - x)``, ``c <- c + |S|/N mean_S(change of c_i)``.

    x are the broadcast weights, y the local weights, g the gradient of the cross-entropy and K the number of local steps. c and c_i are the
    control variates of server and client. S are the clients of the round, N all clients. The correction enters the loss as ``<c - c_i, y>``
    minus its own value, so the reported loss is the cross-entropy. correction = 0 and server_lr = 1 are FedAvg.

    With momentum rho, K is replaced by ``(K - rho (1 - rho^K) / (1 - rho)) / (1 - rho)``, because each step then has more effect. FedNTD's
    public code does the same.

    Source:
        Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic controlled averaging for federated learning, ICML 2020,
            Algorithm 1 with option II.

    Args:
        correction: Weight of ``c - c_i``, >= 0. 1 is the paper's value, 0 switches the correction off.
        server_lr: Factor of the mean change of the model, > 0. 1 takes the mean itself.

    Deviations:
        - From the paper: the mean of models has the weights of ``aggregation``. The paper weights clients uniformly. The mean of control
          variates is uniform here too.
        - Only parameters that are shared have control variates.
        - The equations hold for SGD alone. Other optimizers, Nesterov momentum and dampening are refused.
    """

    client_summary: ClassVar[str] = "control variates"
    server_summary: ClassVar[str] = "mean of models and of control variates"
    broadcast_parts: ClassVar[tuple[str, ...]] = ("model", "control")

    correction: float
    server_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.correction >= 0, "correction", "must be >= 0 (1 is the paper's, 0 is FedAvg)", self.correction)
        require(self.server_lr > 0, "server_lr", "must be > 0 (1 takes the mean as it is)", self.server_lr)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse optimizers whose steps do not add up to ``K lr`` times a mean gradient."""
        require_sgd(optimizer, "SCAFFOLD reads the mean gradient from (x - y) / (K lr)")

    def init_server(self, server: Server) -> State:
        """The model and a server control variate of zeros."""
        return {**super().init_server(server), "control": self.zeros(server)}

    def init_client(self, client: Client) -> State:
        """A client control variate of zeros."""
        return {"control": self.zeros(client)}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy with a term whose gradient is ``correction (c - c_i)`` and whose value is 0."""
        value, metrics = super().loss(model, batch, broadcast, client_state)
        own, server = client_state["control"], broadcast["control"]
        term = sum(((server[name] - own[name]) * (w - w.detach())).sum() for name, w in model.parameters().items() if name in server)
        return value + self.correction * term, metrics

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the model and the change of the control variate. Keep the new control variate."""
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        reach = client.lr * effective_steps(client.num_steps, client.momentum)
        change = {name: (broadcast["model"][name] - trained[name]) / reach - c for name, c in broadcast["control"].items()}
        control = {name: c + change[name] for name, c in client_state["control"].items()}
        return {**sent, "control": change}, {**kept, "control": control}

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the models, scale their mean change by ``server_lr``, and update the server control variate."""
        after, metrics = super().aggregate(server, state, updates, server_round)
        if self.server_lr != 1:
            after["model"] = {**after["model"], **{
                name: state["model"][name] + self.server_lr * (after["model"][name] - state["model"][name]) for name in state["control"]
            }}  # fmt: skip
        share = len(updates) / server.num_clients
        change = average([u.state["control"] for u in updates], [1 / len(updates)] * len(updates))
        return {**after, "control": {name: c + share * change[name] for name, c in state["control"].items()}}, metrics

    def zeros(self, participant: Client | Server) -> Tensors:
        """A control variate of zeros for every shared parameter that is trained."""
        parameters = {name: torch.zeros_like(participant.initial[name]) for name in trained_names(participant.model)}
        return self.shared_parameters(participant.model, parameters)
