"""FedMD: clients of any architecture agree on logits of public images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedkd.distillation.logit_distillation import compute_logits
from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.phase import Phase
from fedkd.federation.server import Server
from fedkd.seed import Seed
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State, Target, Tensors, Update


@dataclass(kw_only=True)
class FedMD(Strategy):
    """Client: ``weight mean |z(x) - Z(x)|`` on public images x (digest), then ``CE(z, y)`` on its own data (revisit).

    Server: ``Z(x) <- mean_k z_k(x)``.

    Z(x), the consensus, is the mean of the logits of the last round's clients. In each round the server draws public images, and every
    client sends its logits on these images. In the next round a client first fits its logits to the consensus (digest). It then trains on
    its own data for ``local_steps`` (revisit). Models are never sent, so there is no global model and clients may have any architectures.
    With weight = 0 every client trains alone.

    Source:
        Li, Wang: FedMD: Heterogenous federated learning via model distillation, 2019.
        Public code: diogenes0319/FedMD_clean @ ab7a07b.

    Args:
        public_size: Public images per round, > 0. All images are used if there are fewer.
        batch_size: Batch size of the digest, > 0.
        epochs: Passes of the digest over these images, > 0.
        weight: Weight of the digest, >= 0. 0 leaves it out.

    Deviations:
        - From the paper: no model is pretrained on labeled public data, because the public images have no labels here. The first round has
          no digest.
        - The digest and the revisit both use the run's optimizer, each with a new state.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label", "multi_label")
    any_shared_layers: ClassVar[bool] = False
    client_summary: ClassVar[str] = "distance to the mean logits on public images"
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

    # ------------------------------------------------------------------------------------------- client side
    def init_client(self, client: Client) -> State:
        """The client's own model."""
        return {"model": self.shared_parameters(client.model, client.initial)}

    def initial_weights(self, client: Client, broadcast: State, client_state: State) -> Tensors:
        """The client's own model."""
        return super().initial_weights(client, client_state, client_state)

    def local_phases(self, client: Client, broadcast: State, client_state: State, server_round: int) -> list[Phase]:
        """The digest of the consensus, where there is one, then training on the client's own data."""
        revisit = super().local_phases(client, broadcast, client_state, server_round)
        if self.weight == 0 or not bool(broadcast["consensus"]["known"]):  # a digest of weight 0 would still change BatchNorm statistics
            return revisit
        assert client.public_data is not None, "the strategy declares that it needs public data"
        index, consensus = broadcast["consensus"]["index"], broadcast["consensus"]["logits"]
        size = min(self.batch_size, len(index))
        orders = [torch.randperm(len(index), generator=(client.seed / "digest" / epoch).torch()) for epoch in range(self.epochs)]
        steps = torch.cat([order[: len(index) // size * size].view(-1, size) for order in orders]).to(client.device)  # [S, B]
        labels, drawn = client.public_data.y[index[steps]], {"consensus": consensus[steps]}
        digest = Batches(labels, index[steps], client.public_data, client.dtype, drawn)
        return [Phase(digest, self.digest), *revisit]

    def digest(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Mean absolute distance of the client's logits to the consensus."""
        return self.weight * (model(batch.x).logits - batch.consensus).abs().mean(), {}

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send logits on the public images that the server has named. Keep the model."""
        model, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        assert client.public_data is not None, "the strategy declares that it needs public data"
        images = client.public_data.subset(broadcast["asked"]["index"])
        return {"logits": {"public": compute_logits(client.model, trained, images, self.batch_size, client.dtype)}}, {**kept, **model}

    # ------------------------------------------------------------------------------------------- server side
    def init_server(self, server: Server) -> State:
        """The public images of the first round, and a consensus that is not known yet."""
        index = self.draw_public_images(server, server.seed / "asked")
        logits = torch.zeros(len(index), server.task.num_classes, dtype=server.dtype, device=server.device)
        unknown = torch.zeros((), dtype=torch.int64, device=server.device)
        return {"asked": {"index": index}, "consensus": {"index": index, "logits": logits, "known": unknown}}

    def draw_public_images(self, server: Server, seed: Seed) -> Tensor:  # [N]
        """Indices of ``public_size`` public images, drawn without replacement."""
        assert server.public_data is not None, "the strategy declares that it needs public data"
        drawn = torch.randperm(len(server.public_data), generator=seed.torch())[: self.public_size]
        return drawn.to(server.device)

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the logits and draw the public images of the next round."""
        logits = torch.stack([u.state["logits"]["public"] for u in updates]).mean(0)
        known = torch.ones_like(state["consensus"]["known"])
        consensus = {"index": state["asked"]["index"], "logits": logits, "known": known}
        return {"asked": {"index": self.draw_public_images(server, server.seed / "asked")}, "consensus": consensus}, {}

    def global_model(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        """None: clients keep their models."""
        return None
