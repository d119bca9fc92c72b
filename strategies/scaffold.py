"""SCAFFOLD: control variates take out of a client's gradient what sets it apart from the others'."""

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
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class Scaffold(Strategy):
    """``y <- y - lr (g - c_i + c)``; after K steps ``c_i <- c_i - c + (x - y) / (K lr)``; ``c <- c + |S|/N mean_S(change of c_i)``.

    Karimireddy et al.: SCAFFOLD, ICML 2020, Algorithm 1 with option II; x is the broadcast. The correction enters as the loss
    ``<c - c_i, y>``, less its value, so that the reported loss is the cross-entropy. With momentum rho, K is replaced by
    ``(K - rho (1 - rho^K) / (1 - rho)) / (1 - rho)``, as the steps then add up to more (as in FedNTD's public code).

    Deviations: the mean of models has the weights of ``aggregation`` (the paper's is uniform), that of control variates is uniform.
    Only parameters that travel have control variates. The equations are those of gradient descent: with another optimizer than SGD they mean nothing.

    Args:
        correction: >= 0, weight of ``c - c_i``; 1 is the paper's, 0 is FedAvg.
        server_lr: > 0, by which the mean change of the model is multiplied; 1 is the mean itself.
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

    def init_server(self, server: Server) -> State:
        return {**super().init_server(server), "control": self.zeros(server)}

    def init_client(self, client: Client) -> State:
        return {"control": self.zeros(client)}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        value, metrics = super().loss(model, batch, broadcast, client_state)
        ours, theirs = client_state["control"], broadcast["control"]
        term = sum(((theirs[name] - ours[name]) * (w - w.detach())).sum() for name, w in model.parameters().items() if name in theirs)
        return value + self.correction * term, metrics

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        reach = client.lr * effective_steps(client.num_steps, client.momentum)
        change = {name: (broadcast["model"][name] - trained[name]) / reach - c for name, c in broadcast["control"].items()}
        control = {name: c + change[name] for name, c in client_state["control"].items()}
        return {**sent, "control": change}, {**kept, "control": control}

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        after, metrics = super().aggregate(server, state, updates, server_round)
        if self.server_lr != 1:
            after["model"] = {**after["model"], **{
                name: state["model"][name] + self.server_lr * (after["model"][name] - state["model"][name]) for name in state["control"]
            }}  # fmt: skip
        share = len(updates) / server.num_clients
        change = average([u.state["control"] for u in updates], [1 / len(updates)] * len(updates))
        return {**after, "control": {name: c + share * change[name] for name, c in state["control"].items()}}, metrics

    def zeros(self, site: Client | Server) -> Tensors:
        """A control variate of nothing for every parameter that travels."""
        parameters = {name: torch.zeros_like(site.initial[name]) for name, _ in site.model.named_parameters()}
        return self.shared_parameters(site.model, parameters)


def effective_steps(steps: int, momentum: float) -> float:
    """How many steps of plain gradient descent ``steps`` with ``momentum`` amount to, of one and the same gradient."""
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
