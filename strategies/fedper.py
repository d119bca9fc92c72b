"""FedPer: federated averaging of the layers before the head. Each client keeps its head."""

from dataclasses import dataclass

from fedkd.errors import require
from fedkd.strategy import Strategy


@dataclass(kw_only=True)
class FedPer(Strategy):
    """Client: ``CE(h_k(f(x)), y)``.

    Server: ``f <- sum_k (n_k / n) f_k``.

    f are the layers before the head, h_k is the head of client k. Both train together. Heads are neither sent nor averaged, so there is no
    global model. With ``shared_layers=all`` this is FedAvg.

    Source:
        Arivazhagan, Aggarwal, Singh, Choudhary: Federated learning with personalization layers, 2019.

    Deviations:
        - The authors' code is not public. The head is the last linear layer, as in PFLlib (TsingZ0/PFLlib @ d832e76). The paper also moves
          the border to earlier layers, which ``shared_layers`` can express.
        - A client that has not trained yet has the initial head, which is the same for all clients.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "must not be head, as each client keeps its head (strategy=fedavg shares the head alone)"
        require(self.shared_layers != "head", "shared_layers", rule, self.shared_layers)
