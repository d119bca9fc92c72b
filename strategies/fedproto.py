"""FedProto: clients share their mean embedding of each class and keep their models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedkd.federation.server import Server
from fedkd.prototype_sharing import PrototypeSharing
from fedkd.types import Metrics, State, Update


@dataclass(kw_only=True)
class FedProto(PrototypeSharing):
    """Client: ``CE(z, y) + weight mean_d (v_d - P[y]_d)^2``.

    Server: ``P[c] <- sum_k n_kc P_k[c] / sum_k n_kc``.

    v is the embedding, with entries v_d. P[c] is the global prototype of class c, P_k[c] client k's mean embedding of its n_kc examples of
    class c in the round. Only prototypes are shared, so there is no global model. weight = 0 trains every client on its own.

    A client is tested with the class whose prototype has the least ``mean_d (v_d - P[c]_d)^2``, or with its head.

    Source:
        Tan, Long, Liu, Zhou, Lu, Jiang, Zhang: FedProto: Federated prototype learning across heterogeneous clients, AAAI 2022.
        Public code: yuetan031/FedProto @ 97e42e2.

    Args:
        weight: Weight of the distance to the prototypes, >= 0. 0 switches it off.
        prediction: What ``local_test_accuracy`` measures: the nearest of the ``prototypes``, or the client's own ``head``. The other one is
            the column ``local_test_accuracy_head`` or ``local_test_accuracy_prototypes``.
        candidates: Classes among which the nearest prototype is chosen: ``all``, or the client's ``own`` training classes.

    Deviations:
        - Prototypes are means over all local steps of a round, during training. The public code uses those of the last local epoch.
        - The mean over clients weights every example of a class equally (``aggregation=examples``), or every client that has the class
          (``uniform``). The public code does the latter.
        - A class that no client has reported has no prototype and no distance term.
        - The public code reports both predictions, and chooses the nearest prototype among the client's own classes. HtFLlib chooses it
          among all classes.
        - From the public code: its printed accuracies are running totals over clients. Here each client counts once.
        - Before a client has trained, and before the first round, classes without a prototype are chosen last.
    """

    client_summary: ClassVar[str] = "distance to the label's mean embedding"
    server_summary: ClassVar[str] = "mean of embeddings by label"

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the prototypes class by class. A class without a report keeps its last prototype."""
        counts = torch.stack([u.state["prototypes"]["count"] for u in updates])  # [K, C]
        means = torch.stack([u.state["prototypes"]["mean"] for u in updates])  # [K, C, D]
        weights = counts if self.aggregation == "examples" else (counts > 0).to(counts.dtype)
        total = weights.sum(0)
        fresh = (weights[..., None] * means).sum(0) / total.clamp(min=1)[:, None]
        before, reported = state["prototypes"], total > 0
        mean = torch.where(reported[:, None], fresh, before["mean"])
        return {"prototypes": {"mean": mean, "known": torch.maximum(before["known"], reported.to(mean.dtype))}}, {}
