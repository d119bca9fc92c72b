"""Ditto: each client trains a personal network near the global one."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.phase import Phase
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.models.base import Classifier
from fedkd.models.network_pair import NetworkPair
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.two_networks import TwoNetworks, is_private, is_shared
from fedkd.types import Metrics, State


@dataclass(kw_only=True)
class Ditto(TwoNetworks):
    """Client: ``CE(z(v_k), y) + (weight / 2) ||v_k - w||^2`` for the personal network v_k, and ``CE(z(w_k), y)`` for the copy w_k of w.

    Server: ``w <- sum_k (n_k / n) w_k``.

    w is the broadcast model. v_k stays with client k and is tested there. The global branch is FedAvg for every weight. weight = 0 is local
    training.

    Source:
        Li, Hu, Beirami, Smith: Ditto: Fair and robust federated learning through personalization, ICML 2021.
        Public code: litian96/ditto @ 26d9b29.

    Args:
        weight: Weight of the distance to the broadcast model, >= 0.
        personal_steps: Number of steps of the personal network in a round, > 0. null: as many as the shared one has, on the same batches.

    Deviations:
        - Each of both trainings of a round is finished before the next begins. The public code alternates between them on each batch. The
          results are the same, as neither reads the other.
        - BatchNorm statistics have no distance term.
    """

    client_summary: ClassVar[str] = "personal network near the broadcast one"

    weight: float
    personal_steps: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, "weight", "must be >= 0 (0 is local training)", self.weight)
        valid = self.personal_steps is None or self.personal_steps > 0
        require(valid, "personal_steps", "must be > 0, or null for the number of local steps", self.personal_steps)

    def client_network(self, configured: Classifier, server: Classifier) -> Classifier:
        """Two networks of one kind with equal initial weights."""
        configured.load_state_dict(server.state_dict())
        return NetworkPair(server, configured)

    def local_phases(self, client: Client, broadcast: State, client_state: State, server_round: int) -> list[Phase]:
        """The personal network, then the shared one."""
        (shared,) = super().local_phases(client, broadcast, client_state, server_round)
        steps = client.num_steps if self.personal_steps is None else self.personal_steps
        personal = Phase(replace(client, num_steps=steps).batches(), self.personal_loss, trained=is_private)
        return [personal, replace(shared, trained=is_shared)]

    def personal_loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """The loss of the personal network."""
        private = model.submodule("private")
        value = cross_entropy(private(batch.x).logits, batch.y).mean()
        if self.weight:
            distances = [(v - broadcast["model"][name]).square().sum() for name, v in private.parameters().items()]
            value = value + self.weight / 2 * sum(distances)
        return value, {}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """The loss of the shared network."""
        return cross_entropy(model.submodule("shared")(batch.x).logits, batch.y).mean(), {}
