"""FedDistill: clients share their mean logits of each class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from fedkd.types import Metrics, State, Target, Tensors, Update


@dataclass(kw_only=True)
class FedDistill(Strategy):
    """Client: ``CE(z, y) + gamma KL(softmax(L[y]) || softmax(z))``.

    Server: ``L <- mean_k L_k``, and ``w <- sum_k (n_k / n) w_k`` where models are shared.

    L is a table [C, C] with the mean logits of each class, and L_k is the same table over client k's examples. In the first round there is
    no table yet, so there is no KL term. gamma = 0 with ``share_model`` is FedAvg.

    With ``share_model`` the models are averaged too. FedGen's paper calls this FedDistill+, and its public code calls it FedDistill-FL.
    Without ``share_model`` only L is shared, every client keeps its own model, and there is no global model. With ``leave_one_out`` a
    client uses the mean table of the other clients, as in the 2018 paper. The server sends the mean over all clients, and each client
    removes its own table from it.

    Source:
        Jeong, Oh, Kim, Park, Bennis, Kim: Communication-efficient on-device machine learning: Federated distillation and augmentation under
            non-IID private data, 2018.
        Public code: zhuangdizhu/FedGen @ dd5807c, which uses it as a baseline.

    Args:
        share_model: Average the models too.
        gamma: Weight of the distillation, >= 0. 0 switches it off.
        accumulate: Sum a client's logits over all its rounds. Otherwise the sums start at 0 in each round.
        initial_count: Number added to every count before the division, >= 0. The public code's value is 1.
        leave_one_out: Learn from the other clients' tables alone. If no other client took part in the last round, there is no distillation
            term.

    Deviations:
        - From the 2018 paper, as in FedGen's public code: the mean table includes the receiving client's own table, unless
          ``leave_one_out`` is set.
        - From FedGen's public code: none that changes numbers with the shipped values. Sums run over all rounds, and counts start at 1. If
          a client has never seen a class, its logits for this class count as 0 in the mean.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label",)
    any_shared_layers: ClassVar[bool] = False
    client_summary: ClassVar[str] = "divergence from the label's mean logits"
    server_summary: ClassVar[str] = "mean of logits by label, and of models where shared"

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
    def broadcast_parts(self) -> tuple[str, ...]:  # type: ignore[override]  # a class variable of other strategies
        """The table of logits, and the model where it is shared."""
        return ("model", "logits") if self.share_model else ("logits",)

    def init_server(self, server: Server) -> State:
        """A table of zeros, and the model where it is shared."""
        classes = server.task.num_classes
        table = {"mean": torch.zeros(classes, classes, dtype=server.dtype, device=server.device)}
        if self.leave_one_out:
            table["clients"] = torch.zeros((), dtype=server.dtype, device=server.device)
        return {**(super().init_server(server) if self.share_model else {}), "logits": table}

    def init_client(self, client: Client) -> State:
        """Sums of logits and counts of 0, and the client's own model where models are not shared."""
        classes = client.task.num_classes
        zeros = partial(torch.zeros, dtype=client.dtype, device=client.device)
        sums = {"sum": zeros(classes, classes), "count": zeros(classes)}
        if self.leave_one_out:
            sums["sent"] = zeros(classes, classes)
        return {"logits": sums, **({} if self.share_model else {"model": self.shared_parameters(client.model, client.initial)})}

    def initial_weights(self, client: Client, broadcast: State, client_state: State) -> Tensors:
        """The broadcast model where models are shared, otherwise the client's own model."""
        return super().initial_weights(client, broadcast if self.share_model else client_state, client_state)

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        """``gamma`` for every step. It is 0 in the first round, and where no other client was in the last one."""
        gamma, mine = self.gamma if server_round > 1 else 0.0, int(client_state["client"]["last_round"]) == server_round - 1 > 0
        if self.leave_one_out and int(broadcast["logits"]["clients"]) == int(mine):
            gamma = 0.0  # no other client was in the last round
        weights = {"gamma": gamma, **({"mine": float(mine)} if self.leave_one_out else {})}
        return {name: torch.full((len(batches),), value, dtype=client.dtype, device=client.device) for name, value in weights.items()}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy and the divergence from the label's mean logits. Also returns sums of logits by label, and label counts."""
        logits = model(batch.x).logits
        distance = kl_divergence(self.table(batch, broadcast, client_state)[batch.y], logits).mean()
        label = one_hot(batch.y, logits.shape[-1]).to(logits.dtype)  # [B, C]
        value = cross_entropy(logits, batch.y).mean() + batch.gamma * distance
        return value, {"logits": label.T @ logits.detach(), "labels": label.sum(0)}

    def table(self, batch: Batch, broadcast: State, client_state: State) -> Tensor:  # [C, C]
        """The mean logits of each class that this client learns from."""
        mean = broadcast["logits"]["mean"]
        if not self.leave_one_out:
            return mean
        clients = broadcast["logits"]["clients"]
        return (clients * mean - batch.mine * client_state["logits"]["sent"]) / (clients - batch.mine).clamp(min=1)

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the client's table, and the model where it is shared."""
        before = client_state["logits"] if self.accumulate else {"sum": 0, "count": 0}
        total = {"sum": before["sum"] + metric_sums["logits"], "count": before["count"] + metric_sums["labels"]}
        count = (total["count"] + self.initial_count).clamp(min=1)
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        table = {"logits": {"mean": total["sum"] / count[:, None]}}
        if self.leave_one_out:
            total["sent"] = table["logits"]["mean"]
        return ({**sent, **table}, {**kept, "logits": total}) if self.share_model else (table, {**kept, **sent, "logits": total})

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the tables, and the models where they are shared."""
        state, metrics = super().aggregate(server, state, updates, server_round) if self.share_model else (state, {})
        mean = torch.stack([u.state["logits"]["mean"] for u in updates]).mean(0)
        clients = {"clients": torch.full_like(state["logits"]["clients"], len(updates))} if self.leave_one_out else {}
        return {**state, "logits": {"mean": mean, **clients}}, metrics

    def global_model(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        """The averaged model, or None where models are not shared."""
        return super().global_model(server, state) if self.share_model else None
