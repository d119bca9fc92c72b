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

    client_term: ClassVar[str] = "divergence from the label's mean logits"
    server_step: ClassVar[str] = "mean of logits by label; mean of models where shared"

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
    def shares(self) -> tuple[str, ...]:
        """The table, and the model if asked."""
        return ("model", "logits") if self.share_model else ("logits",)

    def init(self, server: Server) -> State:
        classes = server.task.num_classes
        table = {"mean": torch.zeros(classes, classes, dtype=server.dtype, device=server.device)}
        if self.leave_one_out:
            table["clients"] = torch.zeros((), dtype=server.dtype, device=server.device)
        return {**(super().init(server) if self.share_model else {}), "logits": table}

    def memory(self, client: Client) -> State:
        classes = client.task.num_classes
        like = {"dtype": client.dtype, "device": client.device}
        sums = {"sum": torch.zeros(classes, classes, **like), "count": torch.zeros(classes, **like)}
        if self.leave_one_out:
            sums["sent"] = torch.zeros(classes, classes, **like)
        return {"logits": sums, **({} if self.share_model else {"model": self.travelling(client.model, client.initial)})}

    def begin(self, client: Client, shared: State, own: State) -> Tensors:
        return super().begin(client, shared if self.share_model else own, own)

    def draw(self, client: Client, batches: Batches, shared: State, own: State, server_round: int) -> dict[str, Tensor]:
        gamma, mine = self.gamma if server_round > 1 else 0.0, int(own["client"]["last_round"]) == server_round - 1 > 0
        if self.leave_one_out and int(shared["logits"]["clients"]) == int(mine):
            gamma = 0.0  # nobody else was there
        weights = {"gamma": gamma, **({"mine": float(mine)} if self.leave_one_out else {})}
        return {name: torch.full((len(batches),), value, dtype=client.dtype, device=client.device) for name, value in weights.items()}

    def loss(self, model: FunctionalModel, batch: Batch, shared: State, own: State) -> tuple[Tensor, Metrics]:
        logits = model(batch.x).logits
        distance = kl_divergence(self.table(batch, shared, own)[batch.y], logits).mean()
        label = one_hot(batch.y, logits.shape[-1]).to(logits.dtype)  # [B, C]
        value = cross_entropy(logits, batch.y).mean() + batch.gamma * distance
        return value, {"logits": label.T @ logits.detach(), "labels": label.sum(0)}

    def table(self, batch: Batch, shared: State, own: State) -> Tensor:  # [C, C]
        """The mean logits of each class that a client learns from."""
        mean = shared["logits"]["mean"]
        if not self.leave_one_out:
            return mean
        clients = shared["logits"]["clients"]
        return (clients * mean - batch.mine * own["logits"]["sent"]) / (clients - batch.mine).clamp(min=1)

    def report(self, client: Client, trained: Tensors, sums: Metrics, shared: State, own: State) -> tuple[State, State]:
        before = own["logits"] if self.accumulate else {"sum": 0, "count": 0}
        total = {"sum": before["sum"] + sums["logits"], "count": before["count"] + sums["labels"]}
        count = (total["count"] + self.initial_count).clamp(min=1)
        sent, kept = super().report(client, trained, sums, shared, own)
        table = {"logits": {"mean": total["sum"] / count[:, None]}}
        if self.leave_one_out:
            total["sent"] = table["logits"]["mean"]
        return ({**sent, **table}, {**kept, "logits": total}) if self.share_model else (table, {**kept, **sent, "logits": total})

    def update(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        state, metrics = super().update(server, state, updates, server_round) if self.share_model else (state, {})
        mean = torch.stack([u.state["logits"]["mean"] for u in updates]).mean(0)
        clients = {"clients": torch.full_like(state["logits"]["clients"], len(updates))} if self.leave_one_out else {}
        return {**state, "logits": {"mean": mean, **clients}}, metrics

    def predict(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        return super().predict(server, state) if self.share_model else None
