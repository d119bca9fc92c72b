"""FedKD: each client trains a private mentor and a shared mentee together, and the mentee travels compressed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.low_rank import compress, decompress
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.kl import kl_divergence
from fedkd.models.base import Classifier
from fedkd.models.network_pair import NetworkPair
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.two_networks import TwoNetworks
from fedkd.types import Metrics, State, Target, Task, Tensors, Update


@dataclass(kw_only=True)
class FedKD(TwoNetworks):
    """Mentor: ``CE_a + (kl KL(p_b || p_a) + hidden MSE(h_a, W h_b)) / (CE_a + CE_b)``.

    Mentee: ``CE_b + (kl KL(p_a || p_b) + hidden MSE(h_a, W h_b)) / (CE_a + CE_b)``.

    Server: ``w <- (1 / K) sum_k b_k``, where w and b_k travel as factors of low rank.

    a is the private network of a client (the mentor), b its copy of the shared one (the mentee). p are probabilities, h embeddings, and W
    is a matrix that the client keeps. KL is divided by the number of classes C. Nothing is detached. A weight matrix travels with the least
    rank that keeps a share e of its squared singular values. e rises from ``start_energy`` to ``end_energy``.

    Source:
        Wu, Wu, Lyu, Huang, Xie: Communication-efficient federated learning via knowledge distillation, Nature Communications 2022.
        Public code: wuch15/FedKD @ 9b9e63f, TsingZ0/HtFLlib @ e959261, which this follows.

    Args:
        kl: Weight of the divergences, >= 0.
        hidden: Weight of the distance of the embeddings, >= 0.
        start_energy: Share of the squared singular values before the first round, in (0, 1]. 1 sends whole matrices.
        end_energy: The same after ``energy_rounds``, in (0, 1].
        energy_rounds: Rounds over which the share rises, > 0.
        shared_model: ``task -> network`` of the mentee. null: the configured network, and the first one where the clients' differ.

    Deviations:
        - From HtFLlib: a matrix that needs its full rank is sent whole. There it becomes zero.
        - From HtFLlib: a tensor whose factors are larger than itself is sent as their product, and the singular values are part of the left
          factor. Both save bytes and change no value.
        - From HtFLlib: gradients are not clipped, and one learning rate holds for mentor, mentee and W.
        - The authors' code compresses the change of a round, HtFLlib and fedkd the weights.
        - The authors' networks are transformers, whose attention has a distance term of its own.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label",)
    broadcast_parts: ClassVar[tuple[str, ...]] = ("model", "energy")
    client_summary: ClassVar[str] = "private network, divergence of both networks and distance of their embeddings"
    server_summary: ClassVar[str] = "mean of models, compressed by singular values"
    secure_aggregation: ClassVar[bool] = False

    kl: float
    hidden: float
    start_energy: float
    end_energy: float
    energy_rounds: int
    shared_model: Callable[[Task], Classifier] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kl", "hidden"):
            require(getattr(self, name) >= 0, name, "must be >= 0 (0 switches it off)", getattr(self, name))
        for name in ("start_energy", "end_energy"):
            require(0 < getattr(self, name) <= 1, name, "must be in (0, 1] (1 sends whole matrices)", getattr(self, name))
        require(self.energy_rounds > 0, "energy_rounds", "must be > 0", self.energy_rounds)

    @property
    def model_heterogeneity(self) -> Literal["none", "same_embedding_size", "any"]:
        """The mentors may be of any kind."""
        return "any"

    def server_network(self) -> Callable[[Task], Classifier] | None:
        """The mentee."""
        return self.shared_model

    def client_network(self, configured: Classifier, server: Classifier) -> Classifier:
        """Mentee, mentor, and the matrix between their embeddings."""
        return MentorAndMentee(server, configured)

    def energy(self, server_round: int) -> float:
        """The share of the squared singular values that models of a round keep, in (0, 1]."""
        return self.start_energy + min(server_round / self.energy_rounds, 1) * (self.end_energy - self.start_energy)

    def decompress(self, model: Tensors) -> Tensors:
        """The model of the factors that travel."""
        return decompress(model)

    def initial_weights(self, client: Client, broadcast: State, client_state: State) -> Tensors:
        """The mentee of the broadcast, and what the client keeps."""
        return super().initial_weights(client, {**broadcast, "model": decompress(broadcast["model"])}, client_state)

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """The sum of both losses, and each of them."""
        a, b = (model.submodule(name)(batch.x) for name in ("private", "shared"))
        mentor, mentee = (cross_entropy(output.logits, batch.y).mean() for output in (a, b))
        scale, num_classes = mentor + mentee, a.logits.shape[-1]
        distance = self.hidden * (a.embedding - model.submodule("projection")(b.embedding)).square().mean()
        mentor = mentor + (self.kl * kl_divergence(b.logits, a.logits).mean() / num_classes + distance) / scale
        mentee = mentee + (self.kl * kl_divergence(a.logits, b.logits).mean() / num_classes + distance) / scale
        return mentor + mentee, {"mentor_loss": mentor, "mentee_loss": mentee}

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the compressed mentee."""
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        return {**sent, "model": compress(sent["model"], float(broadcast["energy"]["share"]))}, kept

    def init_server(self, server: Server) -> State:
        """The compressed mentee, and the share of energy for the first round."""
        return self.compressed(super().init_server(server), 0)

    def aggregate_models(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> State:
        """The mean of the mentees, compressed again."""
        updates = [replace(u, state={**u.state, "model": decompress(u.state["model"])}) for u in updates]
        after = super().aggregate_models(server, {**state, "model": decompress(state["model"])}, updates, server_round)
        return self.compressed(after, server_round)

    def compressed(self, state: State, server_round: int) -> State:
        """A state with its model compressed as after a round, and the share of energy for the clients of the next round."""
        share = torch.tensor(self.energy(server_round + 1), dtype=torch.float64)
        return {**state, "model": compress(state["model"], self.energy(server_round)), "energy": {"share": share}}

    def global_model(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        """The mentee."""
        return super().global_model(server, {**state, "model": decompress(state["model"])})


class MentorAndMentee(NetworkPair):
    """A shared and a private network, with a matrix from the embedding of the shared one to that of the private one.

    Args:
        shared: the mentee.
        private: the mentor.
    """

    def __init__(self, shared: Classifier, private: Classifier) -> None:
        super().__init__(shared, private)
        self.projection = nn.Linear(shared.embedding_size, private.embedding_size, bias=False)
