"""FedBN: federated averaging in which BatchNorm layers stay with the clients."""

from dataclasses import dataclass

from fedkd.errors import require
from fedkd.strategy import Strategy


@dataclass(kw_only=True)
class FedBN(Strategy):
    """Client: ``CE(z, y)``.

    Server: ``w <- sum_k (n_k / n) w_k`` over all parameters outside BatchNorm layers.

    z are the logits of the local model. Scales, shifts and statistics of BatchNorm layers are neither sent nor averaged. For a network
    without BatchNorm layers this is FedAvg.

    Source:
        Li, Jiang, Zhang, Kamp, Dou: FedBN: Federated learning on non-IID features via local batch normalization, ICLR 2021.
        Public code: med-air/FedBN @ 2fa38ad.

    Deviations:
        - From the public code: clients have the weights of ``aggregation``. The public code weights them uniformly.
        - The global model takes the mean of the clients' BatchNorm layers. The paper tests the clients' models alone.
        - A client that has not trained yet has the initial BatchNorm layers.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "must be private, as BatchNorm layers stay with the clients (strategy=fedavg takes other values)"
        require(self.batchnorm == "private", "batchnorm", rule, self.batchnorm)
