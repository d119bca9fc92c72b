"""The partition by groups, and partitions that see more than labels."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fedkd.config.build import call_part
from fedkd.data.digits import Digits
from fedkd.errors import ConfigError
from fedkd.partition.by_group import ByGroup
from fedkd.partition.common import check_arguments, divide, local_test_shards
from fedkd.partition.iid import IID
from fedkd.types import ExampleAttributes, Partition, Task
from simulations.config import compose
from simulations.experiments.heterogeneity import SPLITS, scene
from simulations.setup.clients import checked
from simulations.setup.simulation import Simulation, build_simulation
from tests.fedkd.partition.small_partitions import DIGITS, split, subsample
from tests.small_runs import SMALL

_, TRAIN, TEST = Digits()()
WRITERS = [np.random.default_rng(0).choice(["ann", "bo", "cy", "di", "ed", "flo", "gus"], len(labels)) for labels in DIGITS]


def examples(groups: list[np.ndarray] | None = None) -> list[ExampleAttributes]:
    numbers = [np.unique(writers, return_inverse=True)[1] for writers in WRITERS] if groups is None else groups
    return [ExampleAttributes(y, group, {"writer": writers}) for y, group, writers in zip(DIGITS, numbers, WRITERS)]


def deal(num_clients: int, seed: int = 0, of: list[ExampleAttributes] | None = None, **changes) -> Partition:
    method = ByGroup(**{"column": None, "groups_per_client": None, **changes})
    return divide(method, *(of or examples()), num_clients, np.random.default_rng(seed))


def held(partition: Partition, part: int = 0) -> list[set[str]]:
    """The writers of each client's examples."""
    return [set(WRITERS[part][index]) for index in (partition.train, partition.test)[part]]


@pytest.mark.parametrize("column", [None, "writer"])
def test_with_as_many_groups_as_clients_each_client_has_one(column):
    partition = deal(7, column=column)
    for part in (0, 1):
        assert held(partition, part) == [{name} for name in sorted(set(WRITERS[0]))]
        assert sorted(np.concatenate((partition.train, partition.test)[part])) == list(range(len(DIGITS[part])))
    assert all((np.diff(index) > 0).all() and index.dtype == np.int64 for index in partition.train + partition.test)


def test_more_groups_than_clients_are_dealt_whole_and_at_random():
    partition, other = deal(3), deal(3, seed=1)
    names = held(partition)
    assert sorted(map(len, names)) == [2, 2, 3] and set.union(*names) == set(WRITERS[0]) and held(partition, 1) == names
    assert names != held(other) and held(deal(3)) == names
    assert sum(map(len, partition.train)) == len(DIGITS[0])


def test_clients_draw_so_many_groups_and_the_others_are_not_used():
    names = held(deal(2, groups_per_client=2))
    assert [len(one) for one in names] == [2, 2] and not names[0] & names[1]


def test_fewer_groups_than_clients_are_divided():
    partition = deal(9)
    assert held(partition)[:2] == held(partition)[7:] and [len(one) for one in held(partition)] == [1] * 9
    for part, whole in ((partition.train, deal(7).train), (partition.test, deal(7).test)):
        assert np.array_equal(np.sort(np.concatenate(part)), np.sort(np.concatenate(whole)))
        assert abs(len(part[0]) - len(part[7])) <= 1
    assert not np.array_equal(partition.train[0], deal(9, seed=1).train[0])


def test_test_sets_follow_classes_where_the_test_set_has_none_of_the_groups():
    for groups in (None, np.full(len(DIGITS[1]), 99)):
        of = examples()
        partition = deal(7, of=[of[0], replace(of[1], groups=groups)])
        for mine, expected in zip(partition.test, local_test_shards(partition.train, *DIGITS), strict=True):
            assert np.array_equal(mine, expected)


@pytest.mark.parametrize(
    ("num_clients", "changes", "message"),
    [
        (
            4,
            {"groups_per_client": 2},
            "partition.groups_per_client must be at most 1, as there are 7 groups for 4 clients .or null., got 2",
        ),
        (4, {"groups_per_client": 0}, "groups_per_client must be a whole number >= 1, got 0"),
        (4, {"column": "year"}, r"partition.column must be one of the metadata of the data \(writer\), got 'year'"),
        (1442, {}, "partition.num_clients must leave each client of a group an example; group 0 has .* for 206 clients, got 1442"),
    ],
)
def test_what_cannot_be_dealt_is_one_line(num_clients, changes, message):
    with pytest.raises(ValueError, match=message):
        call_part("partition", lambda: deal(num_clients, **changes))


def built(*overrides: str) -> Simulation:
    """The simulation of a small run with another partition."""
    words = [word for word in SMALL if not word.startswith("partition")]
    return build_simulation(OmegaConf.to_yaml(compose([*words, *overrides]), resolve=True))


def test_data_without_groups_are_refused_with_a_remedy():
    with pytest.raises(ConfigError, match="^partition: the data must give every example a group .* got none; choose data with groups"):
        built("partition=by_group")


def test_a_base_of_subsample_sees_groups_and_equals_itself_by_labels():
    kept = divide(subsample(ByGroup(column="writer", groups_per_client=None)), *examples(), 7, np.random.default_rng(0))
    assert held(kept) == held(deal(7))
    old, new = split(subsample(IID())), divide(subsample(IID()), *examples(), 10, np.random.default_rng(0))
    assert all(np.array_equal(a, b) for a, b in zip(old.train + old.test, new.train + new.test))


# --------------------------------------------------------------------------------------------------------------- a whole run
@dataclass(frozen=True, kw_only=True)
class OddYears:
    """A user's partition that sees metadata: the first client has the odd years."""

    def divide_examples(self, train, test, num_clients, rng):
        check_arguments(train.y, test.y, num_clients)
        shards = [np.flatnonzero(train.metadata["year"] % num_clients == client) for client in range(num_clients)]
        return Partition(shards, local_test_shards(shards, train.y, test.y))


@dataclass(frozen=True, kw_only=True)
class OldDigits:
    """A user's data with metadata: the year of each digit."""

    def __call__(self):
        task, train, test = Digits()()
        return task, replace(train, metadata={"year": np.arange(len(train)) % 12}), test


@dataclass(frozen=True, kw_only=True)
class DarkYears:
    """A user's shift that sees metadata: digits of early years are black."""

    changes_images = True

    def __call__(self, train, test, partition, num_classes, seed):
        early = torch.from_numpy(train.metadata["year"] < 6)
        dark = replace(train, x=torch.where(early[:, None, None, None], 0, train.x))
        return [dark.subset(index) for index in partition.train], [test.subset(index) for index in partition.test]


def test_a_user_s_partition_and_shift_see_metadata():
    parts = {"partition": "OddYears", "shift": "DarkYears"}
    targets = [word for part, name in parts.items() for word in (f"~{part}", f"+{part}._target_={__name__}.{name}")]
    simulation = built("allow_targets=[tests]", f"data._target_={__name__}.OldDigits", *targets)
    for client, shard in enumerate(simulation.client_data.train):
        years = shard.metadata["year"]
        assert len(years) == len(shard) and set(years % 6) == {client}
        dark = (shard.images(torch.arange(len(shard))) == 0).flatten(1).all(1)
        assert dark.tolist() == (years < 6).tolist()


def test_domains_become_clients_and_the_page_of_partitions_shows_them():
    overrides = ["data=rotated_mnist", "data@data.data=digits", "data.held_out=2", "data.angles=[0,30,60,90]"]
    simulation = built(*overrides, "partition=by_group", "num_clients=3")
    assert [set(shard.groups.tolist()) for shard in simulation.client_data.train] == [{0}, {1}, {3}]
    of = scene([*overrides, "num_clients=3"])
    assert all(np.array_equal(a, b) for a, b in zip(of.split(SPLITS["by_group"]).train, simulation.partition.train))


def test_columns_of_another_length_are_refused():
    for changes in ({"groups": torch.zeros(3)}, {"metadata": {"year": np.zeros(3)}}):
        with pytest.raises(ConfigError, match="data._target_ must return .* of training examples as a vector, one value for each of 1442"):
            checked(Task("digits", (1, 8, 8), 10), replace(TRAIN, **changes), "training")
