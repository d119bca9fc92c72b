"""The partitioners of Flower Datasets, as they are."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedkd.errors import ConfigError, require
from fedkd.partition.common import check_arguments, test_shards_of_own_classes
from fedkd.types import Partition

INSTALL = "it needs the package flwr-datasets: pip install 'fedkd[flwr-datasets]'"


@dataclass(frozen=True, kw_only=True)
class FlwrDatasets:
    """Any partitioner of flwr-datasets that divides examples divides the training examples.

    It is given a data set with the columns ``label`` and ``index``, its rows shuffled before, as ``FederatedDataset`` does by default
    (most of its partitioners take rows in the order they find). Where the partitioner takes them and the configuration does not say
    otherwise, ``num_partitions`` is the number of clients, ``partition_by`` is ``label``, and ``seed`` is drawn; a list of lists becomes an
    array. With a ``seed`` of the user's, rows are shuffled by it too: what results is what ``FederatedDataset`` with this seed gives.
    Test shards: ``shards.owned``.

    Args:
        partitioner: a class of ``flwr_datasets.partitioner`` with its parameters: in a configuration ``_target_`` beside
            ``_partial_: true``, in Python ``functools.partial(DirichletPartitioner, alpha=0.1)``.
    """

    partitioner: Callable[..., Any]

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Labels [N] and [M] of the training and test examples, the number of clients K, and the randomness of the draws.

        Raises:
            ConfigError: flwr-datasets is not installed, or its partitioner does not give every client examples of its own.
        """
        check_arguments(train_labels, test_labels, num_clients)
        given = dict(self.partitioner.keywords) if isinstance(self.partitioner, partial) else {}
        seed = given.get("seed")
        order = (rng if seed is None else np.random.default_rng(seed)).permutation(len(train_labels))
        own = {"num_partitions": num_clients, "partition_by": "label", "seed": int(rng.integers(2**31))} | self._arrays(given)
        takes = inspect.signature(self.partitioner).parameters
        kind = getattr(self.partitioner, "func", self.partitioner).__name__
        try:
            train = _divided(self.partitioner(**{key: own[key] for key in own if key in takes}), train_labels[order], num_clients)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"partitioner must divide the training examples among num_clients={num_clients}, got {kind}: {error}"
            ) from error
        train = [np.sort(order[index]).astype(np.int64) for index in train]
        return Partition(train, test_shards_of_own_classes(train, train_labels, test_labels))

    def _arrays(self, given: dict[str, Any]) -> dict[str, Any]:
        """The parameters that are given, tables as arrays."""
        tables = {key: isinstance(value, list) and bool(value) and isinstance(value[0], list) for key, value in given.items()}
        return {key: np.array(value) if tables[key] else value for key, value in given.items() if value is not None}


def _divided(partitioner: Any, labels: np.ndarray, num_clients: int) -> list[np.ndarray]:
    """Each client's row numbers.

    Raises:
        ConfigError: flwr-datasets is not installed, or there are more or fewer partitions than clients, or they are no division of examples.
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
    index = [np.asarray(part["index"][:], np.int64) for part in parts]  # [:]: at once, not row by row
    if empty := [client for client, own in enumerate(index) if len(own) == 0]:
        raise ConfigError(f"it leaves no examples to {empty}")
    if shared := sum(map(len, index)) - len(np.unique(np.concatenate(index))):
        raise ConfigError(f"it gives {shared} examples to several clients")
    return index
