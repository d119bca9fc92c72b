"""Rules that all partitions follow, and local test sets."""

from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from fedkd.partition import common
from fedkd.partition.classes_per_client import ClassesPerClient
from fedkd.partition.iid import IID
from fedkd.partition.shards import Shards
from simulations.config import compose
from tests.fedkd.partition.small_partitions import DIGITS, SPLITS, dirichlet, quantity_skew, split, subsample

ROOT = Path(__file__).parents[3]
YAMLS = sorted((ROOT / "conf" / "partition").glob("*.yaml"))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_a_yaml_holds_exactly_the_parameters_of_its_partition(path):
    conf = OmegaConf.to_container(compose([f"partition={path.stem}"]).partition)
    cls = get_class(conf.pop("_target_"))
    assert set(conf) == set(signature(cls).parameters)
    assert all(p.default is p.empty for p in signature(cls).parameters.values()), "defaults are in yaml only"
    cls(**conf)


# ---------------------------------------------------------------------------------------------------------- laws of every split


@pytest.mark.parametrize("num_clients", [1, 2, 10, 20])
@pytest.mark.parametrize("method", SPLITS, ids=repr)
def test_shards_are_ascending_and_disjoint_and_local_test_sets_have_the_client_s_classes(method, num_clients):
    partition = split(method, num_clients=num_clients)
    assert len(partition.train) == len(partition.test) == num_clients
    for part, labels in zip((partition.train, partition.test), DIGITS):
        assert all(index.dtype == np.int64 and (np.diff(index) > 0).all() for index in part)
        everyone = np.concatenate(part)
        assert len(np.unique(everyone)) == len(everyone) and everyone.min() >= 0 and everyone.max() < len(labels)
    for train, test in zip(partition.train, partition.test):
        assert len(train) > 0 and set(DIGITS[1][test]) == set(DIGITS[0][train])


ALL = [
    IID(),
    dirichlet(),
    dirichlet(alpha=100.0),
    dirichlet(alpha=1e-3, min_size=1),
    ClassesPerClient(per_client=1),
    Shards(per_client=2),
    quantity_skew(),
    subsample(dirichlet(), sigma=0.0),
]


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_all_training_examples_are_used(method):
    assert sorted(np.concatenate(split(method).train)) == list(range(len(DIGITS[0])))


@pytest.mark.parametrize("method", SPLITS, ids=repr)
def test_a_partition_depends_on_the_random_stream_alone(method):
    same, again, other = split(method), split(method), split(method, seed=1)
    assert same.num_draws == again.num_draws
    assert all(np.array_equal(a, b) for a, b in zip(same.train + same.test, again.train + again.test))
    assert not all(np.array_equal(a, b) for a, b in zip(same.train, other.train))


@pytest.mark.parametrize("method", SPLITS, ids=repr)
def test_invalid_arguments_are_refused(method):
    with pytest.raises(ValueError, match="num_clients must be a whole number >= 1, got 0"):
        split(method, num_clients=0)
    with pytest.raises(ValueError, match="num_clients must be a whole number >= 1, got 2.5"):
        split(method, num_clients=2.5)
    with pytest.raises(ValueError, match="num_clients must be at most the number of training examples, 1442, got 1443"):
        split(method, num_clients=1443)
    with pytest.raises(ValueError, match="train_labels must be a vector of integers >= 0, got 'float64"):
        split(method, labels=(DIGITS[0].astype(float), DIGITS[1]))


@pytest.mark.parametrize("method", SPLITS, ids=repr)
def test_labels_are_not_changed(method):
    before = [labels.copy() for labels in DIGITS]
    split(method)
    assert all(np.array_equal(a, b) for a, b in zip(before, DIGITS))


# ----------------------------------------------------------------------------------------------------------------- test shards


def test_a_client_gets_its_share_of_test_examples_of_its_own_classes():
    train_labels, test_labels = np.array([0, 0, 1, 1, 2]), np.array([1, 0, 0, 1, 0, 0, 1, 0, 2])
    train = [np.array([0, 2]), np.array([1]), np.array([3, 4])]  # classes {0, 1}, {0}, {1, 2}
    test = common.local_test_shards(train, train_labels, test_labels)
    # Pools: class 0 is [1, 2, 4, 5, 7], a share is 5 // 3 = 1; class 1 is [0, 3, 6], a share is 1; class 2 is [8], a share is at least 1.
    assert [index.tolist() for index in test] == [[0, 1], [2], [3, 8]]
    assert common.local_test_shards(train, train_labels, test_labels, at_least=0)[2].tolist() == [3]


def test_later_clients_get_no_test_examples_of_a_class_that_is_used_up():
    train_labels, test_labels = np.zeros(4, int), np.zeros(2, int)
    test = common.local_test_shards([np.array([k]) for k in range(4)], train_labels, test_labels)
    assert [index.tolist() for index in test] == [[0], [1], [], []]


def test_a_class_without_test_examples_is_allowed():
    test = common.local_test_shards([np.array([0]), np.array([1])], np.array([0, 3]), np.array([1, 1]))
    assert [len(index) for index in test] == [0, 0]
