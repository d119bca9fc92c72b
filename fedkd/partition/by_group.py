"""Natural clients: the examples of one group, such as a writer, a speaker or a domain, belong to one client."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.errors import ConfigError, require
from fedkd.partition.common import check_arguments, check_count, indices_by_class, local_test_shards
from fedkd.types import ExampleAttributes, Partition


@dataclass(frozen=True, kw_only=True)
class ByGroup:
    """Groups of examples are dealt to the clients.

    With as many groups as clients, client k has group k, in ascending order. More groups than clients are dealt in random order, and a
    client has several. Fewer groups than clients are divided: client k has a random part of group k modulo their number, of equal sizes.

    The local test set of a client holds the test examples of its groups, of any class. Where the test set has none of the groups of the
    training set, as with a domain that is held out, test sets are those of :func:`fedkd.partition.common.local_test_shards`.

    Args:
        column: name of a column of the examples' metadata, whose values are the groups; null: ``Examples.groups``.
        groups_per_client: groups that each client has, drawn at random, of which others are not used; null: all groups are dealt.

    Raises:
        ConfigError: a value is out of range; on calling if the examples have no such groups, or there are too few.
    """

    column: str | None
    groups_per_client: int | None

    def __post_init__(self) -> None:
        if self.groups_per_client is not None:
            check_count("groups_per_client", self.groups_per_client)

    def divide_examples(self, train: ExampleAttributes, test: ExampleAttributes, num_clients: int, rng: np.random.Generator) -> Partition:
        """Divide the examples.

        Args:
            train: the training examples.
            test: the test examples.
            num_clients: number of clients, K.
            rng: draws the groups of clients, and divides groups.

        Raises:
            ConfigError: the training examples have no groups, or too few for ``groups_per_client``, or a group is too small to be divided.
        """
        check_arguments(train.y, test.y, num_clients)
        values = self._values(train)
        if values is None:
            raise ConfigError(self._missing(train))
        groups, members = np.unique(values, return_inverse=True)
        clients = self._clients(len(groups), num_clients, rng)
        by_group = indices_by_class(members)
        for name, owners, indices in zip(groups, clients, by_group):
            rule = f"must leave each client of a group an example; group {name} has {len(indices)} for {len(owners)} clients"
            require(len(indices) >= len(owners), "num_clients", rule, num_clients)
        parts = [rng.permutation(indices) if len(owners) > 1 else indices for owners, indices in zip(clients, by_group)]
        shards = _deal(parts, clients, num_clients)
        tested = self._values(test)
        known = np.zeros(len(test.y), bool) if tested is None else np.isin(tested, groups)
        if not known.any():
            return Partition(shards, local_test_shards(shards, train.y, test.y))
        assert tested is not None
        places = np.searchsorted(groups, tested[known])
        test_parts = [np.flatnonzero(known)[index] for index in indices_by_class(places)]
        return Partition(shards, _deal(test_parts, clients, num_clients))

    def _values(self, examples: ExampleAttributes) -> np.ndarray | None:
        """The group of each example [N]; None where there are none."""
        return examples.groups if self.column is None else examples.metadata.get(self.column)

    def _missing(self, train: ExampleAttributes) -> str:
        """The message for examples without groups."""
        if self.column is None:
            given = "choose data with groups, such as domains, or parquet with data.group_column=NAME, or another partition"
            return f"the data must give every example a group for ByGroup, got none; {given}"
        rule = f"column must be one of the metadata of the data ({', '.join(train.metadata) or 'which have none'})"
        return f"{rule}, got {self.column!r}; for a column of Parquet files use data.group_column=NAME with column=null"

    def _clients(self, num_groups: int, num_clients: int, rng: np.random.Generator) -> list[list[int]]:
        """The clients of each group."""
        number = self.groups_per_client
        if number is not None:
            rule = f"must be at most {num_groups // num_clients}, as there are {num_groups} groups for {num_clients} clients (or null)"
            require(number * num_clients <= num_groups, "groups_per_client", rule, number)
        if number is None and num_groups <= num_clients:
            return [list(range(group, num_clients, num_groups)) for group in range(num_groups)]
        clients: list[list[int]] = [[] for _ in range(num_groups)]
        for place, group in enumerate(rng.permutation(num_groups)[: None if number is None else number * num_clients]):
            clients[group] = [place % num_clients]
        return clients


def _deal(parts: Sequence[np.ndarray], clients: Sequence[Sequence[int]], num_clients: int) -> list[np.ndarray]:
    """For each client the indices of its examples, ascending, int64.

    Args:
        parts: the indices of each group's examples.
        clients: the clients of each group, who get equal parts of it.
        num_clients: number of clients, K.
    """
    shards: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in range(num_clients)]
    for indices, owners in zip(parts, clients):
        for client, shard in zip(owners, np.array_split(indices, max(len(owners), 1))):
            shards[client].append(shard)
    return [np.sort(np.concatenate(shard)).astype(np.int64) for shard in shards]
