"""FedAvg: federated averaging."""

from dataclasses import dataclass

from fedkd.strategy import Strategy


@dataclass(kw_only=True)
class FedAvg(Strategy):
    """Client: ``CE(z, y)``.

    Server: ``w <- sum_k (n_k / n) w_k``.

    z are the logits of the local model and y the labels. w_k are the weights of client k after local training, n_k its number of training
    examples, and n the sum over the round's clients.

    Source:
        McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-efficient learning of deep networks from decentralized data, AISTATS
            2017, Algorithm 1.

    Deviations:
        - From FedGen's public code: a client starts a new pass over its data in each round. The public code continues the pass that it
          began in the last round.
        - From FedGen's public code: a client with fewer examples than a batch trains on all of them. The public code fails in this case.
        - The shared hyperparameters set BatchNorm, the weights of clients, and the learning rate. Their shipped values follow FedGen's
          public code, where BatchNorm statistics stay on the clients.
    """
