"""FedDistill: clients exchange their mean logits of each class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.kl import kl_divergence
from fedkd.strategy import Strategy
from fedkd.tensor_ops import one_hot
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class FedDistill(Strategy):
    """``CE + gamma KL(softmax(L[y]) || softmax(z))``, L[y] the clients' mean logits of class y (Jeong et al. 2018, as FedGen uses it).

    With ``share_model`` the models are averaged too: FedDistill+ of the FedGen paper, FedDistill-FL of its public code.
    Without it only the table L travels, every client keeps its model, and there is no global model to test.

    With ``leave_one_out`` L is the mean over the other clients of the last round, as in the 2018 paper; FedGen's mean has the receiver in
    it. The server sends the sum, from which each client takes what it sent itself.

    Deviations from FedGen's public code: none that changes numbers with the values as shipped; the first round has no distillation term, the sums
    run over all rounds of a client (``accumulate``), counts begin at one (``initial_count``), and a class that a client has
    never seen counts with logits zero.

    Args:
        share_model: average the models too.
        gamma: >= 0, weight of the distillation; 0 with ``share_model`` is FedAvg.
        accumulate: a client's logit sums run on over rounds; otherwise each round begins anew.
        initial_count: >= 0, added to every count before dividing.
        leave_one_out: clients learn from the others' tables alone; where there were no others, from none.
    """

    client_summary: ClassVar[str] = "divergence from the label's mean logits"
    server_summary: ClassVar[str] = "mean of logits by label; mean of models where shared"

    share_model: bool
    gamma: float
    accumulate: bool
    initial_count: int
    leave_one_out: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma >= 0, "gamma", "must be >= 0 (0 switches distillation off)", self.gamma)
        require(self.initial_count >= 0, "initial_count", "must be >= 0 (the public code's value is 1)", self.initial_count)

    @property
    def broadcast_parts(self) -> tuple[str, ...]:
        """The table, and the model if asked."""
        return ("model", "logits") if self.share_model else ("logits",)

    def init_server(self, server: Server) -> State:
        classes = server.task.num_classes
        table = {"mean": torch.zeros(classes, classes, dtype=server.dtype, device=server.device)}
        if self.leave_one_out:
            table["clients"] = torch.zeros((), dtype=server.dtype, device=server.device)
        return {**(super().init_server(server) if self.share_model else {}), "logits": table}

    def init_client(self, client: Client) -> State:
        classes = client.task.num_classes
        like = {"dtype": client.dtype, "device": client.device}
        metric_sums = {"sum": torch.zeros(classes, classes, **like), "count": torch.zeros(classes, **like)}
        if self.leave_one_out:
            metric_sums["sent"] = torch.zeros(classes, classes, **like)
        return {"logits": metric_sums, **({} if self.share_model else {"model": self.shared_parameters(client.model, client.initial)})}

    def initial_weights(self, client: Client, broadcast: State, client_state: State) -> Tensors:
        return super().initial_weights(client, broadcast if self.share_model else client_state, client_state)

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        gamma, mine = self.gamma if server_round > 1 else 0.0, int(client_state["client"]["last_round"]) == server_round - 1 > 0
        if self.leave_one_out and int(broadcast["logits"]["clients"]) == int(mine):
            gamma = 0.0  # nobody else was there
        weights = {"gamma": gamma, **({"mine": float(mine)} if self.leave_one_out else {})}
        return {name: torch.full((len(batches),), value, dtype=client.dtype, device=client.device) for name, value in weights.items()}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        logits = model(batch.x).logits
        distance = kl_divergence(self.table(batch, broadcast, client_state)[batch.y], logits).mean()
        label = one_hot(batch.y, logits.shape[-1]).to(logits.dtype)  # [B, C]
        value = cross_entropy(logits, batch.y).mean() + batch.gamma * distance
        return value, {"logits": label.T @ logits.detach(), "labels": label.sum(0)}

    def table(self, batch: Batch, broadcast: State, client_state: State) -> Tensor:  # [C, C]
        """The mean logits of each class that a client learns from."""
        mean = broadcast["logits"]["mean"]
        if not self.leave_one_out:
            return mean
        clients = broadcast["logits"]["clients"]
        return (clients * mean - batch.mine * client_state["logits"]["sent"]) / (clients - batch.mine).clamp(min=1)

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        before = client_state["logits"] if self.accumulate else {"sum": 0, "count": 0}
        total = {"sum": before["sum"] + metric_sums["logits"], "count": before["count"] + metric_sums["labels"]}
        count = (total["count"] + self.initial_count).clamp(min=1)
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        table = {"logits": {"mean": total["sum"] / count[:, None]}}
        if self.leave_one_out:
            total["sent"] = table["logits"]["mean"]
        return ({**sent, **table}, {**kept, "logits": total}) if self.share_model else (table, {**kept, **sent, "logits": total})

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        state, metrics = super().aggregate(server, state, updates, server_round) if self.share_model else (state, {})
        mean = torch.stack([u.state["logits"]["mean"] for u in updates]).mean(0)
        clients = {"clients": torch.full_like(state["logits"]["clients"], len(updates))} if self.leave_one_out else {}
        return {**state, "logits": {"mean": mean, **clients}}, metrics

    def global_model(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        return super().global_model(server, state) if self.share_model else None
