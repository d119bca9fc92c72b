"""FedMD: clients of unlike networks agree on logits of public images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedkd.distillation.logit_distillation import logits_on
from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.seed import Seed
from fedkd.strategy import Phase, Strategy
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class FedMD(Strategy):
    """Digest: ``|z(x) - Z(x)|`` on public images x, Z the clients' mean logits; then revisit: cross-entropy on the client's own.

    Li, Wang: FedMD: Heterogenous federated learning via model distillation, 2019. Every client keeps its model, of whatever network. In a
    round it digests what the clients of the last round have agreed on, trains on its own data (``local_steps``), and
    sends its logits on the public images that the server names. There is no global model.

    Deviations: nobody is trained on labelled public data beforehand, as the public set has no labels here; the first round has no
    digest. Both phases have the run's optimizer. With weight 0 every client trains alone.

    Args:
        public_size: > 0, public images a round, or all where there are fewer.
        batch_size: > 0, of the digest.
        epochs: > 0, passes of the digest over these images.
        weight: >= 0, of the digest.
    """

    client_summary: ClassVar[str] = "public images: distance to the mean logits"
    server_summary: ClassVar[str] = "mean of logits of public images"
    broadcast_parts: ClassVar[tuple[str, ...]] = ("asked", "consensus")
    needs_public_data: ClassVar[bool] = True

    public_size: int
    batch_size: int
    epochs: int
    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("public_size", "batch_size", "epochs"):
            require(getattr(self, name) > 0, name, "must be > 0", getattr(self, name))
        require(self.weight >= 0, "weight", "must be >= 0 (0 lets every client train alone)", self.weight)

    # ------------------------------------------------------------------------------------------- the client's half
    def init_client(self, client: Client) -> State:
        return {"model": self.shared_parameters(client.model, client.initial)}

    def initial_weights(self, client: Client, broadcast: State, client_state: State) -> Tensors:
        return super().initial_weights(client, client_state, client_state)

    def local_phases(self, client: Client, broadcast: State, client_state: State, server_round: int) -> list[Phase]:
        revisit = super().local_phases(client, broadcast, client_state, server_round)
        if self.weight == 0 or not bool(broadcast["consensus"]["known"]):  # a digest of weight 0 would still move BatchNorm's statistics
            return revisit
        where, agreed = broadcast["consensus"]["index"], broadcast["consensus"]["logits"]
        size = min(self.batch_size, len(where))
        orders = [torch.randperm(len(where), generator=(client.seed / "digest" / epoch).torch()) for epoch in range(self.epochs)]
        steps = torch.cat([order[: len(where) // size * size].view(-1, size) for order in orders]).to(client.device)  # [S, B]
        digest = Batches(client.public_data.y[where[steps]], where[steps], client.public_data, client.dtype, {"consensus": agreed[steps]})
        return [(digest, self.digest), *revisit]

    def digest(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """The mean distance of a client's logits to those agreed on."""
        return self.weight * (model(batch.x).logits - batch.consensus).abs().mean(), {}

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        model, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        asked = client.public_data.subset(broadcast["asked"]["index"])
        return {"logits": {"public": logits_on(client.model, trained, asked, self.batch_size, client.dtype)}}, {**kept, **model}

    # ------------------------------------------------------------------------------------------- the server's half
    def init_server(self, server: Server) -> State:
        asked = self.ask(server, server.seed / "asked")
        logits = torch.zeros(len(asked), server.task.num_classes, dtype=server.dtype, device=server.device)
        unknown = torch.zeros((), dtype=torch.int64, device=server.device)
        return {"asked": {"index": asked}, "consensus": {"index": asked, "logits": logits, "known": unknown}}

    def ask(self, server: Server, seed: Seed) -> Tensor:  # [N]
        """Public images, drawn."""
        drawn = torch.randperm(len(server.public_data), generator=seed.torch())[: self.public_size]
        return drawn.to(server.device)

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        logits = torch.stack([u.state["logits"]["public"] for u in updates]).mean(0)
        known = torch.ones_like(state["consensus"]["known"])
        agreed = {"index": state["asked"]["index"], "logits": logits, "known": known}
        return {"asked": {"index": self.ask(server, server.seed / "asked")}, "consensus": agreed}, {}

    def global_model(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        return None
