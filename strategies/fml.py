"""FML: each client trains a private network and a copy of the shared one, which learn from each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedkd.errors import require
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.kl import kl_divergence
from fedkd.models.base import Classifier
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.two_networks import TwoNetworks
from fedkd.types import Metrics, State, Target, Task


@dataclass(kw_only=True)
class FML(TwoNetworks):
    """Private: ``alpha CE(z_a, y) + (1 - alpha) KL(p_b || p_a)``. Shared: ``beta CE(z_b, y) + (1 - beta) KL(p_a || p_b)``.

    Server: ``w <- (1 / K) sum_k b_k``.

    a is the private network of a client, b its copy of the shared one, z are their logits and p their probabilities. Both train on the same
    batches. With beta = 1 the shared network is FedAvg with equal weights of clients.

    Source:
        Shen, Zhang, Jia, Zhang, Zhou, Kuang, Wu, Wu: Federated mutual learning, 2020.
        Public code: ZJU-DAI/Federated-Mutual-Learning @ b547bbf, TsingZ0/HtFLlib @ e959261.

    Args:
        alpha: Weight of the label's term of the private network, in 0..1.
        beta: Weight of the label's term of the shared network, in 0..1.
        peer: ``detached``: the gradient of a KL term reaches only the network that learns from it, as in the authors' code. ``joint``: it
            reaches both, as in HtFLlib.
        mean_over_classes: Divide the KL terms by the number of classes, as HtFLlib does.
        shared_model: ``task -> network`` that is shared. null: the configured network, and the first one where the clients' differ.

    Deviations:
        - From the public code: both optimizers are new in each round. The authors' keeps that of the private network.
        - From HtFLlib: gradients are not clipped.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label",)
    client_summary: ClassVar[str] = "private network, divergence of both networks from each other"

    alpha: float
    beta: float
    peer: Literal["detached", "joint"]
    mean_over_classes: bool
    shared_model: Callable[[Task], Classifier] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            require(0 <= getattr(self, name) <= 1, name, "must be in 0..1 (1 trains on labels alone)", getattr(self, name))

    @property
    def model_heterogeneity(self) -> Literal["none", "same_embedding_size", "any"]:
        """The private networks may be of any kind."""
        return "any"

    def server_network(self) -> Callable[[Task], Classifier] | None:
        """The shared network."""
        return self.shared_model

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """The sum of both losses, and each of them."""
        a, b = (model.submodule(name)(batch.x).logits for name in ("private", "shared"))
        target_a, target_b = (a, b) if self.peer == "joint" else (a.detach(), b.detach())
        divisor = a.shape[-1] if self.mean_over_classes else 1
        private, shared = (cross_entropy(z, batch.y).mean() for z in (a, b))
        private = self.alpha * private + (1 - self.alpha) * kl_divergence(target_b, a).mean() / divisor
        shared = self.beta * shared + (1 - self.beta) * kl_divergence(target_a, b).mean() / divisor
        return private + shared, {"private_loss": private, "shared_loss": shared}
