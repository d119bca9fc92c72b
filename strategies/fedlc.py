"""FedLC: each client calibrates its logits by its own numbers of labels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State, Target

LEAST_COUNT = 1e-8
"""The number of labels that stands for 0, as in the public reproductions."""


@dataclass(kw_only=True)
class FedLC(Strategy):
    """Client: ``CE(z - tau n^(-1/4), y)``.

    Server: ``w <- sum_k (n_k / n) w_k``.

    n are the client's numbers of training examples of each class [C], with 1e-8 for 0: a class that the client lacks has the margin
    100 tau, and hardly takes part in the softmax. tau = 0 is FedAvg.

    Source:
        Zhang, Li, Li, Xu, Wu, Ding, Wu: Federated learning with label distribution skew via logits calibration, ICML 2022.

    Args:
        tau: Scale of the margins, >= 0. 0 switches them off.

    Deviations:
        - The authors' code is not public. From the paper: the label's own class stays in the denominator of the softmax, as in the public
          reproductions KarhouTam/FL-bench @ 06e658b and makgyver/fluke @ a0bd26a.
        - PFLlib takes the numbers of labels of the whole federation, which is another method.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label",)
    client_summary: ClassVar[str] = "margins by the client's label counts"

    tau: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tau >= 0, "tau", "must be >= 0 (0 is FedAvg)", self.tau)

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        """The margins of all classes, the same in every step [S, C]."""
        counts = torch.bincount(client.data.y, minlength=client.task.num_classes)
        margins = self.tau * counts.to(client.dtype).clamp(min=LEAST_COUNT).pow(-0.25)
        return {"margins": margins.expand(len(batches), -1)}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy of the calibrated logits."""
        return cross_entropy(model(batch.x).logits - batch.margins, batch.y).mean(), {}
