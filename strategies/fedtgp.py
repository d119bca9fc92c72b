"""FedTGP: the server trains the global prototypes, which keep a distance to each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.prototypes import class_means
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.prototype_sharing import PrototypeSharing
from fedkd.seed import Seed
from fedkd.tensor_ops import one_hot
from fedkd.training.batch import Batch, shuffled_epochs
from fedkd.training.functional_model import FunctionalModel, snapshot
from fedkd.training.loop import fit
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class FedTGP(PrototypeSharing):
    """Client: ``CE(z, y) + weight mean_d (v_d - P[y]_d)^2``.

    Prototypes: ``CE(-(|q - P[c]|_2 + m [c = y])_c, y)`` over the clients' mean embeddings q of class y.

    P[c] = A2 relu(A1 e_c + b1) + b2 with a trained embedding e_c of each class. The margin m is the largest distance of a class mean of the
    round to its nearest other one, at most ``max_margin``. A client is tested with the nearest prototype among all classes.

    Source:
        Zhang, Liu, Hua, Cao: FedTGP: Trainable global prototypes with adaptive-margin-enhanced contrastive learning for data and model
            heterogeneity in federated learning, AAAI 2024.
        Public code: TsingZ0/FedTGP @ c77cbbb, TsingZ0/HtFLlib @ e959261.

    Args:
        weight: Weight of the distance to the prototypes, >= 0. 0 switches it off.
        prediction: What ``local_test_accuracy`` measures: the nearest of the ``prototypes``, or the client's own ``head``. The other one is
            the column ``local_test_accuracy_head`` or ``local_test_accuracy_prototypes``.
        candidates: Classes among which the nearest prototype is chosen: ``all``, or the client's ``own`` training classes.
        server_epochs: Passes over the clients' embeddings in a round, >= 0.
        server_batch_size: Embeddings per step, > 0.
        prototype_optimizer: ``parameters -> optimizer`` of the prototypes, made anew in each round.
        max_margin: Largest margin, >= 0.

    Deviations:
        - Before the first round there are no prototypes, and classes are then chosen last. The public code has no accuracy there.
        - From the public code: a distance of 0 has the gradient 0. There it is NaN.
        - From the public code: it reports the best round. fedkd does not.
    """

    client_summary: ClassVar[str] = "distance to the label's prototype"
    server_summary: ClassVar[str] = "training of prototypes on the clients' mean embeddings"

    server_epochs: int
    server_batch_size: int
    prototype_optimizer: OptimizerFactory
    max_margin: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.server_epochs >= 0, "server_epochs", "must be >= 0", self.server_epochs)
        require(self.server_batch_size > 0, "server_batch_size", "must be > 0", self.server_batch_size)
        require(self.max_margin >= 0, "max_margin", "must be >= 0", self.max_margin)

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the mean embedding of each class of the training examples after training. Keep the model."""
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        mean, count = class_means(client, trained)
        return {**sent, "prototypes": {"mean": mean, "count": count}}, kept

    def init_server(self, server: Server) -> State:
        """A new network of prototypes, none of them known."""
        with (server.seed / "prototypes").globally():
            module = Prototypes(server.task.num_classes, server.model.embedding_size).to(server.device, server.dtype)
        return {**super().init_server(server), "network": snapshot(module)}

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Train the prototypes. All of them are known from then on."""
        counts = torch.stack([u.state["prototypes"]["count"] for u in updates])  # [K, C]
        means = torch.stack([u.state["prototypes"]["mean"] for u in updates])  # [K, C, D]
        margin, module = margin_of(means, counts > 0, self.max_margin), prototype_network(*means.shape[1:], server.dtype)
        module, client, label = module.to(server.device), *torch.nonzero(counts, as_tuple=True)
        tensors, metrics = state["network"], {"prototype_margin": margin}
        if self.server_epochs:
            batches = shuffled_epochs(
                label, means[client, label], self.server_epochs, self.server_batch_size, (server.seed / "order").torch()
            )
            fitted = fit(module, tensors, batches, prototype_loss, self.prototype_optimizer, broadcast={"margin": {"m": margin}})
            tensors = fitted.tensors
            metrics["prototype_loss"] = fitted.metric_sums["loss"] / len(batches)
        mean = FunctionalModel(module).at(tensors)().detach()
        return {"prototypes": {"mean": mean, "known": torch.ones_like(state["prototypes"]["known"])}, "network": tensors}, metrics

    def server_steps(self, server: Server, updates: Sequence[Update], server_round: int) -> int:
        """The steps of all passes over the clients' mean embeddings."""
        number = sum(int((u.state["prototypes"]["count"] > 0).sum()) for u in updates)
        return self.server_epochs * -(-number // min(self.server_batch_size, number))


class Prototypes(nn.Module):
    """One vector for each class: two linear layers over an embedding of the class.

    Args:
        num_classes: C.
        size: D, the size of the embeddings.
    """

    def __init__(self, num_classes: int, size: int) -> None:
        super().__init__()
        self.classes, self.hidden, self.out = nn.Embedding(num_classes, size), nn.Linear(size, size), nn.Linear(size, size)

    def forward(self) -> Tensor:  # [C, D]
        """The prototypes of all classes."""
        return self.out(self.hidden(self.classes.weight).relu())


@lru_cache(maxsize=8)
def prototype_network(num_classes: int, size: int, dtype: torch.dtype) -> Prototypes:
    """A network of prototypes whose tensors are always overwritten before use."""
    with Seed(0).globally():  # the global generators are not advanced
        return Prototypes(num_classes, size).to(dtype)


def margin_of(means: Tensor, has: Tensor, largest: float) -> Tensor:
    """The margin of a round.

    Args:
        means: mean embeddings of clients and classes [K, C, D].
        has: whether the client has the class [K, C].
        largest: upper bound.

    Returns:
        The largest distance of a class mean, over clients that have the class, to its nearest other one, at most ``largest``. 0 with fewer
        than two classes.
    """
    weights = has.to(means.dtype)
    known = weights.sum(0) > 0
    centers = ((weights[..., None] * means).sum(0) / weights.sum(0).clamp(min=1)[:, None])[known]
    if len(centers) < 2:
        return means.new_zeros(())
    distances = torch.stack([(centers - one).norm(dim=1) for one in centers])
    distances.fill_diagonal_(float("inf"))
    return distances.min(1).values.max().clamp(max=largest)


def prototype_loss(model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
    """The equation of the prototypes. A distance of 0 has no gradient."""
    prototypes = model()
    distances = (batch.values[:, None] - prototypes).square().sum(-1).clamp(min=torch.finfo(prototypes.dtype).tiny).sqrt()
    label = one_hot(batch.y, len(prototypes)).to(prototypes.dtype)
    return cross_entropy(-(distances + broadcast["margin"]["m"] * label), batch.y).mean(), {}
