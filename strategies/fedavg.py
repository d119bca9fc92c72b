"""Federated averaging."""

from dataclasses import dataclass

from fedkd.strategy import Strategy


@dataclass(kw_only=True)
class FedAvg(Strategy):
    """``w <- sum_k n_k / n w_k`` (McMahan et al., AISTATS 2017, Algorithm 1).

    Deviations: none in the mean. A client begins a fresh epoch each round (FedGen's public code goes on with the last one's), and
    one with fewer examples than a batch trains on all it has (the public code fails there). The switches decide what of
    BatchNorm is averaged, the weights and the learning rate; as shipped they follow FedGen's public code, whose FedAvg keeps
    the statistics on the clients.
    """
