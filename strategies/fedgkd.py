"""FedGKD: local distillation from the mean of the last global models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.kl import kl_divergence
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, keep_frozen
from fedkd.types import Metrics, State, Target, Tensors, Update


@dataclass(kw_only=True)
class FedGKD(Strategy):
    """Client: ``CE(z, y) + gamma/2 KL(softmax(z_h) || softmax(z))``.

    Server: ``w <- sum_k (n_k / n) w_k``, ``w_h <- mean of the last M global models``.

    z_h are the logits of the model with weights w_h, without gradient. With buffer M = 1, w_h is the broadcast itself and no second model
    is sent. The first round has no earlier model and no such term. gamma = 0 is FedAvg.

    Source:
        Yao et al.: Local-global knowledge distillation in heterogeneous federated learning with non-IID data (FedGKD), 2021.
        Public code: CGCL-codes/FedGKD @ 72e7bac.

    Args:
        gamma: Weight of the divergence, >= 0. 0 switches it off.
        buffer: Number M of global models in the mean, > 0.

    Deviations:
        - The variant that weights M teachers by their validation loss is not implemented. In the public code it has no effect, because its
          term is computed without gradients.
        - Where BatchNorm statistics are local, the mean model uses the client's statistics at the start of the round. The public code's
          networks have no BatchNorm.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label",)
    client_summary: ClassVar[str] = "divergence from the mean of the last global models"
    server_summary: ClassVar[str] = "mean of models, and of the last global models"

    gamma: float
    buffer: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma >= 0, "gamma", "must be >= 0 (0 is FedAvg)", self.gamma)
        require(self.buffer > 0, "buffer", "must be > 0 (1 is the broadcast itself)", self.buffer)

    @property
    def broadcast_parts(self) -> tuple[str, ...]:  # type: ignore[override]  # a class variable of other strategies
        """The model, and the mean of the last models where ``buffer`` > 1."""
        return ("model",) if self.buffer == 1 else ("model", "mean")

    def init_server(self, server: Server) -> State:
        """The model, and the mean of the last models where ``buffer`` > 1."""
        state = super().init_server(server)
        return state if self.buffer == 1 else {**state, "mean": state["model"]}

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        """``gamma`` for every step, 0 in the first round."""
        gamma = self.gamma if server_round > 1 else 0.0
        return {"gamma": torch.full((len(batches),), gamma, dtype=client.dtype, device=client.device)}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy and the divergence from the mean of the last models."""
        logits = model(batch.x).logits
        teacher = model.at({**broadcast.get("mean", broadcast["model"]), **client_state.get("local", {})})
        distance = kl_divergence(teacher(batch.x).logits.detach(), logits).mean()
        return cross_entropy(logits, batch.y).mean() + batch.gamma / 2 * distance, {}

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the clients' models, then the last ``buffer`` global models."""
        after, metrics = super().aggregate(server, state, updates, server_round)
        if self.buffer == 1:
            return after, metrics
        past = [after["model"], *unflatten_models(state.get("past", {}))][: self.buffer]
        mean = keep_frozen(server.model, server.initial, {key: mean_of([model[key] for model in past]) for key in after["model"]})
        flat = {f"{age}/{key}": value for age, model in enumerate(past) for key, value in model.items()}
        return {**after, "mean": mean, "past": flat}, metrics


def unflatten_models(past: Tensors) -> list[Tensors]:
    """The last global models from their flattened form, latest first."""
    models: list[Tensors] = []
    for name, value in past.items():
        age, _, key = name.partition("/")
        models += [{}] * (int(age) + 1 - len(models))
        models[int(age)] = {**models[int(age)], key: value}
    return models


def mean_of(values: Sequence[Tensor]) -> Tensor:
    """The mean of floating-point tensors, and the maximum of integer ones (BatchNorm's batch counters)."""
    stacked = torch.stack(list(values))
    return stacked.mean(0) if stacked.is_floating_point() else stacked.amax(0)
