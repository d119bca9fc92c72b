"""Labels of two data sets, and partitions with the parameters that tests use."""

import numpy as np

from fedkd.data.digits import Digits
from fedkd.partition.classes_per_client import ClassesPerClient
from fedkd.partition.client_dirichlet import ClientDirichlet
from fedkd.partition.dirichlet import BalancedDirichlet, Dirichlet
from fedkd.partition.fedgen import FedGen
from fedkd.partition.iid import IID
from fedkd.partition.quantity_skew import QuantitySkew
from fedkd.partition.shards import Shards
from fedkd.partition.subsample import Subsample

_, DIGITS_TRAIN, DIGITS_TEST = Digits()()
DIGITS = DIGITS_TRAIN.y.numpy(), DIGITS_TEST.y.numpy()
MNIST_SIZES = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
LIKE_MNIST = tuple(np.random.default_rng(0).permutation(np.repeat(np.arange(10), sizes)) for sizes in MNIST_SIZES)


def dirichlet(**changes) -> Dirichlet:
    return Dirichlet(**{"alpha": 0.1, "min_size": 2, "max_draws": 1000, **changes})


def fedgen(**changes) -> FedGen:
    return FedGen(**{"alpha": 0.1, "ratio": 0.5, "min_size": 10, "max_draws": 1000, **changes})


def split(partition, labels=DIGITS, num_clients=10, seed=0):
    return partition(*labels, num_clients, np.random.default_rng(seed))


def quantity_skew(**changes) -> QuantitySkew:
    return QuantitySkew(**{"distribution": "dirichlet", "alpha": 0.5, "sigma": 1.0, "min_size": 2, "max_draws": 1000, **changes})


def subsample(base, **changes) -> Subsample:
    return Subsample(**{"base": base, "distribution": "lognormal", "sigma": 1.0, "alpha": 0.5, "min_size": 2, **changes})


SPLITS = [
    IID(), dirichlet(), dirichlet(alpha=100.0), fedgen(min_size=2), fedgen(ratio=1.0), fedgen(alpha=10.0, ratio=0.3, min_size=2),
    ClassesPerClient(per_client=1), ClassesPerClient(per_client=3), Shards(per_client=1), Shards(per_client=2), quantity_skew(),
    BalancedDirichlet(alpha=0.1, min_size=2, max_draws=1000), ClientDirichlet(alpha=0.1), ClientDirichlet(alpha=1e-6),
    quantity_skew(distribution="lognormal"), subsample(dirichlet()), subsample(ClassesPerClient(per_client=3), distribution="dirichlet"),
]  # fmt: skip
