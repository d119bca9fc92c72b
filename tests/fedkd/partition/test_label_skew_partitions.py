"""Partitions with and without label skew: IID, Dirichlet, FedGen, classes per client, and shards."""

import logging

import numpy as np
import pytest

from fedkd.partition import common
from fedkd.partition.classes_per_client import ClassesPerClient
from fedkd.partition.client_dirichlet import ClientDirichlet
from fedkd.partition.dirichlet import BalancedDirichlet, balanced_sizes
from fedkd.partition.iid import IID
from fedkd.partition.shards import Shards
from tests.fedkd.partition.small_partitions import DIGITS, LIKE_MNIST, MNIST_SIZES, dirichlet, fedgen, quantity_skew, split
from tests.public_code import public_code

# ------------------------------------------------------------------------------------------------------------------------- iid


@pytest.mark.parametrize("num_clients", [1, 7, 10, 1442])
def test_iid_shards_have_equal_sizes(num_clients):
    sizes = [len(index) for index in split(IID(), num_clients=num_clients).train]
    assert max(sizes) - min(sizes) <= 1


def test_iid_shards_have_the_distribution_of_the_data_set():
    counts = common.label_counts(split(IID(), LIKE_MNIST, 10).train, LIKE_MNIST[0], 10)
    expected = np.array(MNIST_SIZES[0]) / 10
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


# ------------------------------------------------------------------------------------------------------------------- dirichlet


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_proportions_have_the_moments_of_a_dirichlet(alpha):
    num_clients, num_classes, size = 5, 400, 2000
    labels = np.repeat(np.arange(num_classes), size)
    train = split(dirichlet(alpha=alpha), (labels, labels[:1]), num_clients).train
    shares = common.label_counts(train, labels, num_classes) / size  # [K, C]
    mean, variance = 1 / num_clients, (1 / num_clients) * (1 - 1 / num_clients) / (num_clients * alpha + 1)
    assert np.allclose(shares.mean(axis=1), mean, atol=5 * np.sqrt(variance / num_classes))
    assert np.allclose(shares.var(), variance, rtol=0.15)
    expected = np.random.default_rng(1).dirichlet([alpha] * num_clients, num_classes)
    assert np.allclose(np.quantile(shares, [0.25, 0.5, 0.75, 0.9]), np.quantile(expected, [0.25, 0.5, 0.75, 0.9]), atol=0.05)


def test_rounding_favours_no_client():
    labels = np.repeat(np.arange(2000), 3)
    per_client = common.label_counts(split(dirichlet(alpha=1.0), (labels, labels), 6).train, labels, 2000).sum(axis=1)
    assert (np.abs(per_client - 1000) < 150).all(), per_client  # rounding down would give the last client about 2,000 more


def test_many_clients_with_equal_proportions_all_get_examples():
    partition = split(dirichlet(alpha=1e6), num_clients=200)  # fewer than one example of a class for each: 144 / 200
    assert partition.num_draws < 10


def test_balanced_sizes_are_those_of_public_code():
    arrays = public_code("partition")
    numbers = np.bincount(arrays["niid_labels"].numpy())
    assert (balanced_sizes(arrays["niid_proportions"][-1].numpy(), numbers) == arrays["niid_counts"].numpy().T).all()


def test_no_client_gets_more_examples_once_it_has_its_share():
    method = BalancedDirichlet(alpha=0.1, min_size=10, max_draws=1000)
    sizes = [len(index) for index in split(method, LIKE_MNIST, 20).train]
    assert max(sizes) < 60_000 / 20 + max(MNIST_SIZES[0]) and sum(sizes) == sum(MNIST_SIZES[0]) and min(sizes) >= 10
    unbalanced = [len(index) for index in split(dirichlet(alpha=0.1), LIKE_MNIST, 20).train]
    assert np.std(sizes) < np.std(unbalanced)


def test_balanced_sizes_of_full_clients_are_a_failed_draw():
    assert balanced_sizes(np.array([[1.0, 0.0], [1.0, 0.0]]), [6, 2]) is None


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_clients_with_class_proportions_have_equal_sizes(alpha):
    train = split(ClientDirichlet(alpha=alpha), LIKE_MNIST, 100).train
    assert {len(index) for index in train} == {600}
    counts = common.label_counts(train, LIKE_MNIST[0], 10)
    first = counts / 600
    variance = 0.1 * 0.9 / (10 * alpha + 1) + 0.1 * 0.9 / 600
    assert np.var(first) == pytest.approx(variance, rel=0.35), "late clients get what is left"


@pytest.mark.parametrize("offset", [0, 0.5, 0.999999])
def test_allocation_uses_all_examples_and_gives_none_for_proportion_zero(offset):
    generator = np.random.default_rng(0)
    for _ in range(300):
        proportions = generator.dirichlet([0.1] * 7) * (generator.random(7) < 0.5)
        if proportions.sum() > 0:
            sizes = common.allocate(proportions, 1009, offset)
            assert sizes.sum() == 1009 and (sizes >= 0).all() and (sizes[proportions == 0] == 0).all()


def test_draws_are_repeated_until_all_clients_have_enough_and_this_is_logged(caplog):
    with caplog.at_level(logging.INFO, "fedkd"):
        easy = split(dirichlet(alpha=100.0))
    assert easy.num_draws == 1 and not caplog.records
    with caplog.at_level(logging.INFO, "fedkd"):
        hard = split(dirichlet(min_size=40))
    assert hard.num_draws > 1 and min(map(len, hard.train)) >= 40
    assert f"the split of draw {hard.num_draws} is the first with at least 40 examples" in caplog.text
    assert split(dirichlet(min_size=40, max_draws=hard.num_draws)).num_draws == hard.num_draws
    rule = f"max_draws={hard.num_draws - 1} draws, got 40, where the best draw left a client with .*larger alpha"
    with pytest.raises(ValueError, match=rule):
        split(dirichlet(min_size=40, max_draws=hard.num_draws - 1))


def test_an_impossible_minimum_size_is_refused_without_drawing():
    with pytest.raises(ValueError, match="min_size must be at most 144, as 1442 training examples are shared by 10 clients, got 145"):
        split(dirichlet(min_size=145, max_draws=10**9))


@pytest.mark.parametrize("make", [dirichlet, fedgen, quantity_skew])
@pytest.mark.parametrize(
    "wrong, rule",
    [
        ({"alpha": 0}, "alpha must be > 0 .*, got 0"),
        ({"alpha": -1.0}, "alpha must be > 0"),
        ({"alpha": float("nan")}, "alpha must be > 0"),
        ({"alpha": float("inf")}, "alpha must be > 0 .* finite"),
        ({"min_size": 0}, "min_size must be a whole number >= 1, got 0"),
        ({"min_size": 1.5}, "min_size must be a whole"),
        ({"max_draws": 0}, "max_draws must be a whole number >= 1, got 0"),
    ],
)
def test_parameters_out_of_range_are_refused(make, wrong, rule):
    with pytest.raises(ValueError, match=rule):
        make(**wrong)


# ---------------------------------------------------------------------------------------------------------------------- fedgen


@pytest.mark.parametrize("alpha", [0.05, 0.1, 1.0, 10.0])
def test_fedgen_on_mnist_keeps_1500_of_each_class(alpha):
    partition = split(fedgen(alpha=alpha), LIKE_MNIST, 20)
    counts, test_counts = (common.label_counts(part, labels, 10) for part, labels in zip((partition.train, partition.test), LIKE_MNIST))
    assert counts.sum(axis=0).tolist() == [1500] * 10
    assert counts.sum(axis=1).min() >= 10
    share = np.array(MNIST_SIZES[1]) // 20
    assert np.array_equal(test_counts, (counts > 0) * share)


def test_fedgen_clients_at_the_cap_get_no_more_examples():
    at_cap = 0
    for seed in range(30):
        counts = common.label_counts(split(fedgen(alpha=0.02, min_size=1), LIKE_MNIST, 20, seed).train, LIKE_MNIST[0], 10)
        # For any order of classes: without its largest class, a client was below the cap when it got its last class.
        at_cap += (counts.sum(axis=1) >= 1500).sum()
        assert (counts.sum(axis=1) - counts.max(axis=1) < 1500).all()
        assert counts.sum(axis=1).max() < 3000
    assert at_cap > 30


def test_fedgen_keeps_the_ratio_of_small_classes_and_all_at_one():
    labels = np.repeat([0, 1], [100, 900]), np.repeat([0, 1], [10, 90])
    for ratio, kept in ((0.5, [50, 250]), (1.0, [100, 900])):
        train = split(fedgen(alpha=10.0, ratio=ratio, min_size=1), labels, 2).train
        assert common.label_counts(train, labels[0], 2).sum(axis=0).tolist() == kept


def test_fedgen_draws_the_examples_that_it_uses():
    first, second = (np.concatenate(split(fedgen(), LIKE_MNIST, 20, seed).train) for seed in (0, 1))
    overlap = len(np.intersect1d(first, second)) / 15000
    assert 0.2 < overlap < 0.3  # a quarter of the data each


def test_fedgen_gives_no_test_examples_of_a_class_with_fewer_than_clients():
    partition = split(fedgen(min_size=1), num_clients=40)
    assert all(len(index) == 0 for index in partition.test)


@pytest.mark.parametrize("ratio", [0, 1.01, float("nan")])
def test_fedgen_refuses_a_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\]"):
        fedgen(ratio=ratio)


def test_fedgen_refuses_a_minimum_size_above_the_used_examples():
    with pytest.raises(ValueError, match=r"min_size \* 10 clients must be at most the 716 examples that ratio=0.5 keeps.*got 100"):
        split(fedgen(min_size=100))


# ----------------------------------------------------------------------------------------- classes per client, and shards


@pytest.mark.parametrize("num_clients", [1, 3, 10, 17])
@pytest.mark.parametrize("per_client", [1, 2, 7, 10])
def test_clients_have_per_client_classes_and_classes_have_equally_many_clients(per_client, num_clients):
    held = common.label_counts(split(ClassesPerClient(per_client=per_client), num_clients=num_clients).train, DIGITS[0], 10)
    assert ((held > 0).sum(axis=1) == per_client).all()
    holders = (held > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1 and holders.sum() == num_clients * per_client
    for label in np.flatnonzero(holders):
        mine = held[held[:, label] > 0, label]
        assert mine.max() - mine.min() <= 1 and mine.sum() == (DIGITS[0] == label).sum()


def test_the_classes_of_a_client_are_drawn():
    held = [tuple(common.label_counts(split(ClassesPerClient(per_client=2), seed=seed).train, DIGITS[0], 10)[0] > 0) for seed in range(30)]
    assert len(set(held)) > 10


def test_too_many_classes_per_client_and_too_small_classes_are_refused():
    with pytest.raises(ValueError, match="per_client must be at most the number of classes there are examples of, 10, got 11"):
        split(ClassesPerClient(per_client=11))
    with pytest.raises(ValueError, match="per_client must be at most .* 2, got 3"):
        split(ClassesPerClient(per_client=3), labels=(np.array([0, 5] * 30), np.array([0, 5])))
    with pytest.raises(ValueError, match="per_client must be small enough: 10 clients would share the 3 examples of class 1"):
        split(ClassesPerClient(per_client=2), labels=(np.array([0] * 30 + [1] * 3), np.array([0, 1])))


@pytest.mark.parametrize("make", [ClassesPerClient, Shards])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_per_client_must_be_a_whole_number(make, wrong):
    with pytest.raises(ValueError, match="per_client must be a whole number >= 1, got"):
        make(per_client=wrong)


def test_shards_are_consecutive_in_the_sorted_examples():
    """MNIST in 200 shards of 300 examples, as in the paper: most clients have two classes, and none has more than four."""
    partition = split(Shards(per_client=2), LIKE_MNIST, 100)
    assert {len(index) for index in partition.train} == {600}
    classes = (common.label_counts(partition.train, LIKE_MNIST[0], 10) > 0).sum(axis=1)
    assert classes.max() <= 4 and np.median(classes) == 2 and set(classes) >= {1, 2, 3}


def test_more_shards_than_examples_are_refused():
    with pytest.raises(ValueError, match=r"per_client \* 10 clients must be at most the number of training examples, 1442, got 145"):
        split(Shards(per_client=145))
