"""FedDistill: clients exchange their mean logits of each class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkd.batch import Batch, Batches
from fedkd.bound import Bound
from fedkd.check import require
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.kl import kl_divergence
from fedkd.one_hot import one_hot
from fedkd.site import Client, Server
from fedkd.strategy import Strategy
from fedkd.types import Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class FedDistill(Strategy):
    """``CE + gamma KL(softmax(L[y]) || softmax(z))``, L[y] the clients' mean logits of class y (Jeong et al. 2018, as FedGen uses it).

    With ``share_model`` the models are averaged too: FedDistill+ of the FedGen paper, FedDistill-FL of its public code.
    Without it only the table L travels, every client keeps its model, and there is no global model to test.

    Deviations from the 2018 paper: the mean includes the receiver's own table (leave-one-out is not implemented). From FedGen's
    public code: none that changes numbers with the values as shipped; the first round has no distillation term, the sums
    run over all rounds of a client (``accumulate``), counts begin at one (``initial_count``), and a class that a client has
    never seen counts with logits zero.

    Args:
        share_model: average the models too.
        gamma: >= 0, weight of the distillation; 0 with ``share_model`` is FedAvg.
        accumulate: a client's logit sums run on over rounds; otherwise each round begins anew.
        initial_count: >= 0, added to every count before dividing.
    """

    share_model: bool
    gamma: float
    accumulate: bool
    initial_count: int

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
        return {**(super().init(server) if self.share_model else {}), "logits": table}

    def memory(self, client: Client) -> State:
        classes = client.task.num_classes
        like = {"dtype": client.dtype, "device": client.device}
        sums = {"sum": torch.zeros(classes, classes, **like), "count": torch.zeros(classes, **like)}
        return {"logits": sums, **({} if self.share_model else {"model": self.travelling(client.model, client.initial)})}

    def begin(self, client: Client, shared: State, own: State) -> Tensors:
        return super().begin(client, shared if self.share_model else own, own)

    def draw(self, client: Client, batches: Batches, shared: State, own: State, server_round: int) -> dict[str, Tensor]:
        gamma = self.gamma if server_round > 1 else 0.0
        return {"gamma": torch.full((len(batches),), gamma, dtype=client.dtype, device=client.device)}

    def loss(self, model: Bound, batch: Batch, shared: State, own: State) -> tuple[Tensor, Metrics]:
        logits = model(batch.x).logits
        distance = kl_divergence(shared["logits"]["mean"][batch.y], logits).mean()
        label = one_hot(batch.y, logits.shape[-1]).to(logits.dtype)  # [B, C]
        value = cross_entropy(logits, batch.y).mean() + batch.gamma * distance
        return value, {"logits": label.T @ logits.detach(), "labels": label.sum(0)}

    def report(self, client: Client, trained: Tensors, sums: Metrics, shared: State, own: State) -> tuple[State, State]:
        before = own["logits"] if self.accumulate else {"sum": 0, "count": 0}
        total = {"sum": before["sum"] + sums["logits"], "count": before["count"] + sums["labels"]}
        count = (total["count"] + self.initial_count).clamp(min=1)
        sent, kept = super().report(client, trained, sums, shared, own)
        table = {"logits": {"mean": total["sum"] / count[:, None]}}
        return ({**sent, **table}, {**kept, "logits": total}) if self.share_model else (table, {**kept, **sent, "logits": total})

    def update(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        state, metrics = super().update(server, state, updates, server_round) if self.share_model else (state, {})
        mean = torch.stack([u.state["logits"]["mean"] for u in updates]).mean(0)
        return {**state, "logits": {"mean": mean}}, metrics

    def predict(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        return super().predict(server, state) if self.share_model else None
