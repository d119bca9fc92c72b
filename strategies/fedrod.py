"""FedRoD: a shared head for all classes, and a private head for the client's own."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.models.base import Classifier
from fedkd.models.network_pair import PrivateHead
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.two_networks import TwoNetworks
from fedkd.types import Metrics, State, Target


@dataclass(kw_only=True)
class FedRoD(TwoNetworks):
    """Client: ``CE(z + gamma ln n, y) + CE(stop(z) + z_k, y)``, where the second term trains the private head alone.

    Server: ``w <- sum_k (n_k / n) w_k``.

    z are the logits of the shared network and z_k those of the private head for the same embedding. n are the client's numbers of training
    examples of each class [C]. A client is tested with ``z + z_k``. The column ``local_test_accuracy_shared`` is the accuracy of z. With
    gamma = 0 the shared network is trained as in FedAvg.

    Source:
        Chen, Chao: On bridging generic and personalized federated learning for image classification, ICLR 2022.

    Args:
        gamma: Weight of the logarithm of the numbers of labels, >= 0. 0 is cross-entropy.

    Deviations:
        - The authors' code is not public. This follows PFLlib (TsingZ0/PFLlib @ d832e76), where the private head begins as a copy of the
          shared one and reads the logits from before the step of the shared network.
        - The heads made by a hypernetwork are not implemented.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label",)
    client_summary: ClassVar[str] = "logits balanced by label counts, private head"

    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma >= 0, "gamma", "must be >= 0 (0 is cross-entropy)", self.gamma)

    def client_network(self, configured: Classifier, server: Classifier) -> Classifier:
        """The server's network, and a copy of its head."""
        return PrivateHead(server, copy.deepcopy(server.head))

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        """``gamma ln n``, the same in every step [S, C]. A class that the client lacks is never a label, and leaves the softmax."""
        if self.gamma == 0:
            return {}
        counts = torch.bincount(client.data.y, minlength=client.task.num_classes).to(client.dtype)
        return {"prior": (self.gamma * counts.log()).expand(len(batches), -1)}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """The equation of the client."""
        output = model.submodule("shared")(batch.x)
        balanced = output.logits + batch.prior if self.gamma else output.logits
        personal = output.logits.detach() + model.submodule("private")(output.embedding.detach())
        return cross_entropy(balanced, batch.y).mean() + cross_entropy(personal, batch.y).mean(), {}
