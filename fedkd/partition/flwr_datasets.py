"""The partitioners of Flower Datasets."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedkd.errors import ConfigError, require
from fedkd.partition.common import check_arguments, local_test_shards
from fedkd.types import Partition

INSTALL = "it needs the package flwr-datasets: pip install 'fedkd[flwr-datasets]'"


@dataclass(frozen=True, kw_only=True)
class FlwrDatasets:
    """A partitioner of flwr-datasets divides the training examples.

    It receives a data set with the columns ``label`` and ``index`` and shuffled rows, as ``FederatedDataset`` makes by default. Three
    parameters are set where the partitioner has them and the configuration does not: ``num_partitions`` to the number of clients,
    ``partition_by`` to ``label``, and ``seed`` to a random number. A list of lists becomes an array. A ``seed`` of the configuration
    shuffles the rows too, so that the result equals that of ``FederatedDataset`` with this seed. Partitioners that divide columns are
    refused. Local test sets: :func:`fedkd.partition.common.local_test_shards`.

    Args:
        partitioner: a class of ``flwr_datasets.partitioner`` with its parameters: in a configuration ``_target_`` with
            ``_partial_: true``, in Python ``functools.partial(DirichletPartitioner, alpha=0.1)``.
    """

    partitioner: Callable[..., Any]

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide the examples.

        Args:
            train_labels: labels of the training examples [N].
            test_labels: labels of the test examples [M].
            num_clients: number of clients, K.
            rng: shuffles the rows and draws the partitioner's seed.

        Raises:
            ConfigError: flwr-datasets is not installed, or the partitioner does not divide the examples among the clients.
        """
        check_arguments(train_labels, test_labels, num_clients)
        configured = dict(self.partitioner.keywords) if isinstance(self.partitioner, partial) else {}
        seed = configured.get("seed")
        order = (rng if seed is None else np.random.default_rng(seed)).permutation(len(train_labels))
        defaults = {"num_partitions": num_clients, "partition_by": "label", "seed": int(rng.integers(2**31))}
        arguments = defaults | _with_arrays(configured)
        parameters = inspect.signature(self.partitioner).parameters
        name = getattr(self.partitioner, "func", self.partitioner).__name__
        try:
            partitioner = self.partitioner(**{key: value for key, value in arguments.items() if key in parameters})
            train = _divide(partitioner, train_labels[order], num_clients)
        except (ValueError, TypeError, KeyError) as error:
            rule = f"must divide the training examples among num_clients={num_clients}"
            raise ConfigError(f"partitioner {rule}, got {name}: {error}") from error
        train = [np.sort(order[index]).astype(np.int64) for index in train]
        return Partition(train, local_test_shards(train, train_labels, test_labels))


def _with_arrays(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are not None, with lists of lists converted to arrays."""
    tables = {key: isinstance(value, list) and bool(value) and isinstance(value[0], list) for key, value in arguments.items()}
    return {key: np.array(value) if tables[key] else value for key, value in arguments.items() if value is not None}


def _divide(partitioner: Any, labels: np.ndarray, num_clients: int) -> list[np.ndarray]:
    """For each client the rows of its examples.

    Raises:
        ConfigError: flwr-datasets is not installed, the number of partitions is not that of the clients, or the partitions are not a
            division of the examples.
    """
    try:
        from datasets import Dataset
    except ImportError as error:
        raise ConfigError(INSTALL) from error
    partitioner.dataset = Dataset.from_dict({"label": labels, "index": np.arange(len(labels))})
    number = partitioner.num_partitions
    require(number == num_clients, "num_partitions", "must be the number of clients", number)
    parts = [partitioner.load_partition(client) for client in range(num_clients)]
    if not all("index" in part.column_names for part in parts):
        raise ConfigError("it divides columns, not examples")
    rows = [np.asarray(part["index"][:], np.int64) for part in parts]  # [:] reads the column at once and not row by row
    if repeated := sum(map(len, rows)) - len(np.unique(np.concatenate(rows))):
        raise ConfigError(f"it gives {repeated} examples to several clients")
    return rows
