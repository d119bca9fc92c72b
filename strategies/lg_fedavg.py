"""LG-FedAvg: some layers are averaged, and the others stay with each client."""

from dataclasses import dataclass

from fedkd.strategy import Strategy


@dataclass(kw_only=True)
class LGFedAvg(Strategy):
    """Client: ``CE(h(f_k(x)), y)``.

    Server: ``h <- sum_k (n_k / n) h_k``.

    h are the layers of ``shared_layers``, as shipped the head. f_k are the other layers of client k, which stay there, so the clients'
    networks may differ in them. With ``shared_layers=all`` this is FedAvg.

    Source:
        Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency: Think locally, act globally: Federated learning with local and
            global representations, 2020.
        Public code: TsingZ0/HtFLlib @ e959261, whose shared layers these are, and pliang279/LG-FedAvg @ 7af0568 of the authors.

    Deviations:
        - From the authors' code: it shares the two convolutions of a network for CIFAR-10, and the last three layers of one for MNIST.
          Patterns of names such as ``shared_layers='stages.*'`` do so.
        - From the authors' code: it starts from a model that FedAvg has trained, and its mean has equal weights of clients
          (``aggregation=uniform``).
        - From the authors' code: it reports each client's network with the best test accuracy so far. fedkd reports the last one.
    """
