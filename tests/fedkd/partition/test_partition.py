"""Partitions: what every split keeps, what each of them promises, and what they refuse."""

import logging
import os
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from hydra.utils import get_class
from omegaconf import OmegaConf

from fedkd.data.digits import Digits
from fedkd.metrics import label_skew
from fedkd.partition import common
from fedkd.partition.classes_per_client import ClassesPerClient
from fedkd.partition.dirichlet import Dirichlet
from fedkd.partition.fedgen import FedGen
from fedkd.partition.from_file import FromFile
from fedkd.partition.iid import IID
from fedkd.partition.quantity_skew import QuantitySkew
from fedkd.partition.shards import Shards
from fedkd.partition.subsample import Subsample
from simulations.config import compose

ROOT = Path(__file__).parents[3]
YAMLS = sorted((ROOT / "conf" / "partition").glob("*.yaml"))
REAL_MNIST = Path(os.environ.get("FEDKD_MNIST") or ROOT.parent / "shared" / "data" / "mnist")

_, DIGITS_TRAIN, DIGITS_TEST = Digits()()
DIGITS = DIGITS_TRAIN.y.numpy(), DIGITS_TEST.y.numpy()
MNIST_SIZES = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
LIKE_MNIST = tuple(np.random.default_rng(0).permutation(np.repeat(np.arange(10), sizes)) for sizes in MNIST_SIZES)


def dirichlet(**changes) -> Dirichlet:
    return Dirichlet(**{"alpha": 0.1, "min_size": 2, "max_draws": 1000, **changes})


def fedgen(**changes) -> FedGen:
    return FedGen(**{"alpha": 0.1, "ratio": 0.5, "min_size": 10, "max_draws": 1000, **changes})


def split(how, labels=DIGITS, num_clients=10, seed=0):
    return how(*labels, num_clients, np.random.default_rng(seed))


def quantity(**changes) -> QuantitySkew:
    return QuantitySkew(**{"distribution": "dirichlet", "alpha": 0.5, "sigma": 1.0, "min_size": 2, "max_draws": 1000, **changes})


def thinned(base, **changes) -> Subsample:
    return Subsample(**{"base": base, "distribution": "lognormal", "sigma": 1.0, "alpha": 0.5, "min_size": 2, **changes})


SPLITS = [
    IID(), dirichlet(), dirichlet(alpha=100.0), fedgen(min_size=2), fedgen(ratio=1.0), fedgen(alpha=10.0, ratio=0.3, min_size=2),
    ClassesPerClient(per_client=1), ClassesPerClient(per_client=3), Shards(per_client=1), Shards(per_client=2), quantity(),
    quantity(distribution="lognormal"), thinned(dirichlet()), thinned(ClassesPerClient(per_client=3), distribution="dirichlet"),
]  # fmt: skip


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_a_yaml_holds_exactly_the_parameters_of_its_split(path):
    conf = OmegaConf.to_container(compose([f"partition={path.stem}"]).partition)
    cls = get_class(conf.pop("_target_"))
    assert set(conf) == set(signature(cls).parameters)
    assert all(p.default is p.empty for p in signature(cls).parameters.values()), "defaults live in yaml only"
    cls(**conf)


# ---------------------------------------------------------------------------------------------------------- laws of every split


@pytest.mark.parametrize("num_clients", [1, 2, 10, 20])
@pytest.mark.parametrize("how", SPLITS, ids=repr)
def test_shards_are_ascending_disjoint_and_owned(how, num_clients):
    partition = split(how, num_clients=num_clients)
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
    quantity(),
    thinned(dirichlet(), sigma=0.0),
]


@pytest.mark.parametrize("how", ALL, ids=repr)
def test_all_training_examples_are_given_away(how):
    assert sorted(np.concatenate(split(how).train)) == list(range(len(DIGITS[0])))


@pytest.mark.parametrize("how", SPLITS, ids=repr)
def test_the_stream_alone_decides(how):
    same, again, other = split(how), split(how), split(how, seed=1)
    assert same.num_draws == again.num_draws
    assert all(np.array_equal(a, b) for a, b in zip(same.train + same.test, again.train + again.test))
    assert not all(np.array_equal(a, b) for a, b in zip(same.train, other.train))


@pytest.mark.parametrize("how", SPLITS, ids=repr)
def test_impossible_demands_are_refused(how):
    with pytest.raises(ValueError, match="num_clients must be a whole number >= 1, got 0"):
        split(how, num_clients=0)
    with pytest.raises(ValueError, match="num_clients must be a whole number >= 1, got 2.5"):
        split(how, num_clients=2.5)
    with pytest.raises(ValueError, match="num_clients must be at most the number of training examples, 1442, got 1443"):
        split(how, num_clients=1443)
    with pytest.raises(ValueError, match="train_labels must be a vector of integers >= 0, got 'float64"):
        split(how, labels=(DIGITS[0].astype(float), DIGITS[1]))


@pytest.mark.parametrize("how", SPLITS, ids=repr)
def test_labels_are_left_as_they_were(how):
    before = [labels.copy() for labels in DIGITS]
    split(how)
    assert all(np.array_equal(a, b) for a, b in zip(before, DIGITS))


# ------------------------------------------------------------------------------------------------ classes, label_shards, quantity


@pytest.mark.parametrize("num_clients", [1, 3, 10, 17])
@pytest.mark.parametrize("per_client", [1, 2, 7, 10])
def test_clients_hold_so_many_classes_and_classes_equally_many_clients(per_client, num_clients):
    held = common.label_counts(split(ClassesPerClient(per_client=per_client), num_clients=num_clients).train, DIGITS[0], 10)
    assert ((held > 0).sum(axis=1) == per_client).all()
    holders = (held > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1 and holders.sum() == num_clients * per_client
    for label in np.flatnonzero(holders):
        mine = held[held[:, label] > 0, label]
        assert mine.max() - mine.min() <= 1 and mine.sum() == (DIGITS[0] == label).sum()


def test_which_classes_a_client_holds_is_drawn():
    held = [tuple(common.label_counts(split(ClassesPerClient(per_client=2), seed=seed).train, DIGITS[0], 10)[0] > 0) for seed in range(30)]
    assert len(set(held)) > 10


def test_more_classes_than_there_are_and_too_few_examples_of_one_are_refused():
    with pytest.raises(ValueError, match="per_client must be at most the number of classes there are examples of, 10, got 11"):
        split(ClassesPerClient(per_client=11))
    with pytest.raises(ValueError, match="per_client must be at most .* 2, got 3"):
        split(ClassesPerClient(per_client=3), labels=(np.array([0, 5] * 30), np.array([0, 5])))
    with pytest.raises(ValueError, match="per_client must be small enough: 10 clients would share the 3 examples of class 1"):
        split(ClassesPerClient(per_client=2), labels=(np.array([0] * 30 + [1] * 3), np.array([0, 1])))


@pytest.mark.parametrize("make", [ClassesPerClient, Shards])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_so_many_are_a_whole_number(make, wrong):
    with pytest.raises(ValueError, match="per_client must be a whole number >= 1, got"):
        make(per_client=wrong)


def test_label_shards_are_pieces_of_the_sorted_examples():
    """Of MNIST in 200 pieces of 300, as in the paper: two a client, so most clients have two classes and none more than four."""
    partition = split(Shards(per_client=2), LIKE_MNIST, 100)
    assert {len(index) for index in partition.train} == {600}
    classes = (common.label_counts(partition.train, LIKE_MNIST[0], 10) > 0).sum(axis=1)
    assert classes.max() <= 4 and np.median(classes) == 2 and set(classes) >= {1, 2, 3}


def test_more_pieces_than_examples_are_refused():
    with pytest.raises(ValueError, match=r"per_client \* 10 clients must be at most the number of training examples, 1442, got 145"):
        split(Shards(per_client=145))


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_sizes_have_the_moments_of_a_dirichlet_and_labels_do_not_matter(alpha):
    """Var of a share: (1/K)(1 - 1/K) / (K alpha + 1)."""
    splits = [split(quantity(alpha=alpha, min_size=1), LIKE_MNIST, 8, seed).train for seed in range(60)]
    shares = np.array([[len(index) for index in train] for train in splits]) / len(LIKE_MNIST[0])
    assert shares.var() == pytest.approx((1 / 8) * (7 / 8) / (8 * alpha + 1), rel=0.25)
    held = common.label_counts(splits[0], LIKE_MNIST[0], 10)
    big = held[held.sum(axis=1) > 2000]
    assert len(big) and abs(big / big.sum(axis=1, keepdims=True) - 0.1).max() < 0.05


def test_lognormal_sizes():
    spread = [
        np.log([len(index) for index in split(quantity(distribution="lognormal", sigma=s), LIKE_MNIST, 500).train]).std()
        for s in (0, 0.5, 1)
    ]
    assert spread == pytest.approx([0, 0.5, 1], abs=0.08)


def test_quantity_s_parameters():
    for changes, rule in (
        ({"sigma": -1.0}, "sigma must be >= 0"),
        ({"distribution": "pareto"}, "distribution must be one of dirichlet, lognormal"),
    ):
        with pytest.raises(ValueError, match=rule):
            quantity(**changes)


# --------------------------------------------------------------------------------------------------------------------- thinned


@pytest.mark.parametrize("base", [IID(), dirichlet(), ClassesPerClient(per_client=2)], ids=repr)
@pytest.mark.parametrize("changes", [{}, {"distribution": "dirichlet"}, {"sigma": 3.0, "min_size": 1}], ids=repr)
def test_a_client_keeps_a_part_of_what_the_base_gives_it_and_one_keeps_all(base, changes):
    whole, part = split(base), split(thinned(base, **changes))
    kept = np.array([len(index) / len(before) for index, before in zip(part.train, whole.train)])
    assert all(np.isin(index, before).all() for index, before in zip(part.train, whole.train))
    assert kept.max() == 1 and kept.min() < 0.6 and min(map(len, part.train)) >= changes.get("min_size", 2)
    for index, before, train, train_before in zip(part.test, whole.test, part.train, whole.train):
        lost = set(DIGITS[0][train_before]) - set(DIGITS[0][train])
        assert index.tolist() == [i for i in before if DIGITS[1][i] not in lost]


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_what_is_kept_is_lognormal_and_does_not_look_at_labels(sigma):
    train = split(thinned(IID(), sigma=sigma), LIKE_MNIST, 300).train
    assert np.log([len(index) for index in train]).std() == pytest.approx(sigma, abs=4 * sigma / np.sqrt(2 * 300) + 0.02)
    total, expected = sum(map(len, train)), np.array(MNIST_SIZES[0]) / 60000
    held = common.label_counts(train, LIKE_MNIST[0], 10).sum(axis=0) / total
    assert (np.abs(held - expected) < 4 * np.sqrt(expected / total)).all()


def test_what_is_kept_has_the_spread_of_a_dirichlet():
    """Over its largest share: the ratio of mean to maximum."""
    train = [split(thinned(IID(), distribution="dirichlet", min_size=1), LIKE_MNIST, 10, seed).train for seed in range(60)]
    ours = np.mean([np.mean([len(index) for index in one]) / 6000 for one in train])
    theirs = 0.1 / np.random.default_rng(0).dirichlet([0.5] * 10, 100_000).max(axis=1)
    assert ours == pytest.approx(theirs.mean(), abs=4 * theirs.std() / np.sqrt(60))


def test_a_base_that_cannot_be_is_named():
    with pytest.raises(ValueError, match=r"min_size must be at most what base leaves the client with the fewest examples, \d+, got 100"):
        split(thinned(dirichlet(), min_size=100))
    with pytest.raises(ValueError, match="^base.per_client must be at most the number of classes"):
        split(thinned(ClassesPerClient(per_client=11)))
    with pytest.raises(ValueError, match="sigma must be >= 0"):
        thinned(IID(), sigma=-1.0)
    with pytest.raises(ValueError, match="distribution must be one of lognormal, dirichlet, got 'pareto'"):
        thinned(IID(), distribution="pareto")
    with pytest.raises(ValueError, match="alpha must be > 0"):
        thinned(IID(), alpha=0.0)
    with pytest.raises(ValueError, match="min_size must be a whole number >= 1"):
        thinned(IID(), min_size=0)


# ----------------------------------------------------------------------------------------------------------------- test shards


def test_a_client_gets_its_share_of_the_classes_that_it_owns():
    train_labels, test_labels = np.array([0, 0, 1, 1, 2]), np.array([1, 0, 0, 1, 0, 0, 1, 0, 2])
    train = [np.array([0, 2]), np.array([1]), np.array([3, 4])]  # own {0, 1}, {0}, {1, 2}
    test = common.test_shards_of_own_classes(train, train_labels, test_labels)
    # Pools: class 0 is [1, 2, 4, 5, 7], a share is 5 // 3 = 1; class 1 is [0, 3, 6], a share is 1; class 2 is [8], a share is at least 1.
    assert [index.tolist() for index in test] == [[0, 1], [2], [3, 8]]
    assert common.test_shards_of_own_classes(train, train_labels, test_labels, at_least=0)[2].tolist() == [3]


def test_a_pool_that_is_used_up_leaves_nothing_to_later_clients():
    train_labels, test_labels = np.zeros(4, int), np.zeros(2, int)
    test = common.test_shards_of_own_classes([np.array([k]) for k in range(4)], train_labels, test_labels)
    assert [index.tolist() for index in test] == [[0], [1], [], []]


def test_a_class_without_test_examples_is_no_matter():
    test = common.test_shards_of_own_classes([np.array([0]), np.array([1])], np.array([0, 3]), np.array([1, 1]))
    assert [len(index) for index in test] == [0, 0]


# ------------------------------------------------------------------------------------------------------------------------- iid


@pytest.mark.parametrize("num_clients", [1, 7, 10, 1442])
def test_iid_shards_have_equal_sizes(num_clients):
    sizes = [len(index) for index in split(IID(), num_clients=num_clients).train]
    assert max(sizes) - min(sizes) <= 1


def test_iid_shards_resemble_the_whole():
    counts = common.label_counts(split(IID(), LIKE_MNIST, 10).train, LIKE_MNIST[0], 10)
    expected = np.array(MNIST_SIZES[0]) / 10
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


# ------------------------------------------------------------------------------------------------------------------- dirichlet


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_shares_have_the_moments_of_a_dirichlet(alpha):
    num_clients, num_classes, size = 5, 400, 2000
    labels = np.repeat(np.arange(num_classes), size)
    train = split(dirichlet(alpha=alpha), (labels, labels[:1]), num_clients).train
    shares = common.label_counts(train, labels, num_classes) / size  # [K, C]
    mean, variance = 1 / num_clients, (1 / num_clients) * (1 - 1 / num_clients) / (num_clients * alpha + 1)
    assert np.allclose(shares.mean(axis=1), mean, atol=5 * np.sqrt(variance / num_classes))
    assert np.allclose(shares.var(), variance, rtol=0.15)
    theirs = np.random.default_rng(1).dirichlet([alpha] * num_clients, num_classes)
    assert np.allclose(np.quantile(shares, [0.25, 0.5, 0.75, 0.9]), np.quantile(theirs, [0.25, 0.5, 0.75, 0.9]), atol=0.05)


def test_rounding_favours_no_client():
    labels = np.repeat(np.arange(2000), 3)
    per_client = common.label_counts(split(dirichlet(alpha=1.0), (labels, labels), 6).train, labels, 2000).sum(axis=1)
    assert (np.abs(per_client - 1000) < 150).all(), per_client  # rounding down would give the last client about 2,000 more


def test_many_clients_of_like_proportions_all_get_some():
    partition = split(dirichlet(alpha=1e6), num_clients=200)  # fewer than one example of a class for each: 144 / 200
    assert partition.num_draws < 10


@pytest.mark.parametrize("offset", [0, 0.5, 0.999999])
def test_a_cut_gives_all_away_and_nothing_for_nothing(offset):
    generator = np.random.default_rng(0)
    for _ in range(300):
        proportions = generator.dirichlet([0.1] * 7) * (generator.random(7) < 0.5)
        if proportions.sum() > 0:
            sizes = common.allocate(proportions, 1009, offset)
            assert sizes.sum() == 1009 and (sizes >= 0).all() and (sizes[proportions == 0] == 0).all()


def test_draws_are_repeated_until_all_have_enough_and_this_is_told(caplog):
    with caplog.at_level(logging.INFO, "fedkd"):
        easy = split(dirichlet(alpha=100.0))
    assert easy.num_draws == 1 and not caplog.records
    with caplog.at_level(logging.INFO, "fedkd"):
        hard = split(dirichlet(min_size=40))
    assert hard.num_draws > 1 and min(map(len, hard.train)) >= 40
    assert f"the split of draw {hard.num_draws} is the first with at least 40 examples" in caplog.text
    assert split(dirichlet(min_size=40, max_draws=hard.num_draws)).num_draws == hard.num_draws
    said = f"max_draws={hard.num_draws - 1} draws, got 40, where the best draw left a client with .*larger alpha"
    with pytest.raises(ValueError, match=said):
        split(dirichlet(min_size=40, max_draws=hard.num_draws - 1))


def test_more_than_there_is_is_refused_at_once():
    with pytest.raises(ValueError, match="min_size must be at most 144, as 1442 training examples are shared by 10 clients, got 145"):
        split(dirichlet(min_size=145, max_draws=10**9))


@pytest.mark.parametrize("make", [dirichlet, fedgen, quantity])
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


def test_fedgen_clients_at_the_cap_get_no_more():
    at_cap = 0
    for seed in range(30):
        counts = common.label_counts(split(fedgen(alpha=0.02, min_size=1), LIKE_MNIST, 20, seed).train, LIKE_MNIST[0], 10)
        # Whatever the order of classes: without its largest class, a client was below the cap when it got its last one.
        at_cap += (counts.sum(axis=1) >= 1500).sum()
        assert (counts.sum(axis=1) - counts.max(axis=1) < 1500).all()
        assert counts.sum(axis=1).max() < 3000
    assert at_cap > 30


def test_fedgen_keeps_the_ratio_of_small_classes_and_all_at_one():
    labels = np.repeat([0, 1], [100, 900]), np.repeat([0, 1], [10, 90])
    for ratio, kept in ((0.5, [50, 250]), (1.0, [100, 900])):
        train = split(fedgen(alpha=10.0, ratio=ratio, min_size=1), labels, 2).train
        assert common.label_counts(train, labels[0], 2).sum(axis=0).tolist() == kept


def test_fedgen_chooses_whom_to_keep_at_random():
    first, second = (np.concatenate(split(fedgen(), LIKE_MNIST, 20, seed).train) for seed in (0, 1))
    overlap = len(np.intersect1d(first, second)) / 15000
    assert 0.2 < overlap < 0.3  # a quarter of the data each


def test_fedgen_gives_no_test_example_of_classes_smaller_than_the_number_of_clients():
    partition = split(fedgen(min_size=1), num_clients=40)
    assert all(len(index) == 0 for index in partition.test)


@pytest.mark.parametrize("ratio", [0, 1.01, float("nan")])
def test_fedgen_ratio_is_a_part(ratio):
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\]"):
        fedgen(ratio=ratio)


def test_fedgen_refuses_more_than_it_keeps():
    with pytest.raises(ValueError, match=r"min_size \* 10 clients must be at most the 716 examples that ratio=0.5 keeps.*got 100"):
        split(fedgen(min_size=100))


# ------------------------------------------------------------------------------------------------------------------------ file


@pytest.mark.parametrize("how", SPLITS, ids=repr)
def test_what_is_saved_is_read_back(tmp_path, how):
    partition = split(how, num_clients=12)
    common.write_partition(partition, tmp_path / "p.npz", *DIGITS, 10)
    again = split(FromFile(path=str(tmp_path / "p.npz")), num_clients=12)
    assert all(np.array_equal(a, b) for a, b in zip(partition.train + partition.test, again.train + again.test))
    with np.load(tmp_path / "p.npz") as file:
        assert {"train_00", "train_11", "test_00", "counts", "test_counts"} < set(file.files) and len(file.files) == 26
        assert file["counts"].dtype == np.int64 and file["counts"].shape == (12, 10)
        for k in range(12):
            for label in range(10):
                assert file["counts"][k, label] == (DIGITS[0][partition.train[k]] == label).sum()
                assert file["test_counts"][k, label] == (DIGITS[1][partition.test[k]] == label).sum()
    before = (tmp_path / "p.npz").read_bytes()
    common.write_partition(partition, tmp_path / "p.npz", *DIGITS, 10)
    assert (tmp_path / "p.npz").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_numbers_are_padded_as_far_as_needed(tmp_path):
    common.write_partition(split(IID(), num_clients=101), tmp_path / "p.npz", *DIGITS, 10)
    with np.load(tmp_path / "p.npz") as file:
        assert "train_007" in file.files and "test_100" in file.files
    assert len(split(FromFile(path=str(tmp_path / "p.npz")), num_clients=101).train) == 101


def arrays(**changes):
    good = {"train_00": np.array([3, 1]), "train_01": np.array([0]), "test_00": np.array([0, 1]), "test_01": np.array([1])}
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def test_unsorted_indices_overlapping_tests_and_other_keys_are_fine(tmp_path):
    np.savez(tmp_path / "p.npz", **arrays(alpha=np.array(0.1), train_note=np.array("x"), test_01=np.array([], float)))
    partition = split(FromFile(path=str(tmp_path / "p.npz")), num_clients=2)
    assert partition.train[0].tolist() == [1, 3] and partition.test[1].dtype == np.int64 and len(partition.test[1]) == 0


@pytest.mark.parametrize(
    "changes, rule",
    [
        ({"train_01": None}, "train_ arrays for num_clients=2 clients; missing are 1"),
        ({"test_00": None}, "test_ arrays .* missing are 0"),
        ({"train_02": np.array([9])}, "train_ arrays for num_clients=2 clients; there are more: 2"),
        ({"train_1": np.array([9])}, "some train_ keys stand for the same number"),
        ({"train_01": None, "train_x1": np.array([0])}, "missing are 1"),
        ({"train_00": np.array([1442])}, r"indices in 0\.\.1441; the train_ array of client 0 has others"),
        ({"test_01": np.array([-1])}, r"indices in 0\.\.354; the test_ array of client 1 has others"),
        ({"train_00": np.array([3, 3])}, "every index once; the train_ array of client 0 repeats"),
        ({"test_00": np.array([3, 3])}, "every index once; the test_ array of client 0 repeats"),
        ({"train_01": np.array([3])}, "give a training example to one client; index 3 is given to several"),
        ({"train_00": np.array([3.0, 1.0])}, "vectors of integers; the train_ array of client 0 is float64"),
        ({"train_00": np.array([[3, 1]])}, r"vectors of integers; .* is int64\[1, 2\]"),
        ({"train_01": np.array([], int)}, "give every client training examples; client 1 has none"),
        ({"train_00": np.array(["a", None], object)}, "file of index arrays, got .*allow_pickle"),
    ],
)
def test_a_file_that_holds_no_partition_is_refused(tmp_path, changes, rule):
    np.savez(tmp_path / "p.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=rf"^path must .*{rule}"):
        split(FromFile(path=str(tmp_path / "p.npz")), num_clients=2)


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b"", lambda b: b"garbage", lambda b: b[:150] + b"\xff\xff" + b[152:]])
def test_a_damaged_file_is_named(tmp_path, damage):
    np.savez(tmp_path / "p.npz", **arrays())
    (tmp_path / "p.npz").write_bytes(damage((tmp_path / "p.npz").read_bytes()))
    with pytest.raises(ValueError, match="path must be an npz file of index arrays, got '.*p.npz'"):
        split(FromFile(path=str(tmp_path / "p.npz")), num_clients=2)


def test_a_lone_array_is_no_npz(tmp_path):
    with (tmp_path / "p.npz").open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(ValueError, match="path must be an npz file of index arrays"):
        split(FromFile(path=str(tmp_path / "p.npz")), num_clients=2)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="path must be an npz file .*there is no such file, got '.*none.npz'"):
        split(FromFile(path=str(tmp_path / "none.npz")))


# ------------------------------------------------------------------------------------------------------------------ real files


@pytest.mark.skipif(not (REAL_MNIST / "partition_fedgen_alpha0.1.npz").is_file(), reason="set FEDKD_MNIST to a folder with MNIST/raw")
@pytest.mark.parametrize("alpha, num_test", [(0.1, 5307), (1.0, 9764)])
def test_the_public_codes_split_of_mnist_obeys_our_rules(alpha, num_test):
    labels = tuple(torchvision.datasets.MNIST(REAL_MNIST, train=train).targets.numpy() for train in (True, False))
    theirs = split(FromFile(path=str(REAL_MNIST / f"partition_fedgen_alpha{alpha}.npz")), labels, 20)
    assert common.label_counts(theirs.train, labels[0], 10).sum(axis=0).tolist() == [1500] * 10
    ours = common.test_shards_of_own_classes(theirs.train, labels[0], labels[1], at_least=0)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs.test)) and sum(map(len, ours)) == num_test


# ------------------------------------------------------------------------------------------------------------------------ skew


@pytest.mark.parametrize(
    ("counts", "distance", "classes"),
    [
        ([[5, 5], [50, 50]], 0.0, 2.0),
        ([[9, 0, 0], [0, 1, 0], [0, 0, 4]], 1.0, 1.0),
        ([[1, 1, 0], [0, 1, 1]], 0.5, 2.0),
        ([[3, 1]], 0.0, float(np.exp(0.25 * np.log(4) + 0.75 * np.log(4 / 3)))),
        ([[2, 0], [0, 0], [0, 7]], 1.0, 1.0),
    ],
)
def test_skew_of_small_tables(counts, distance, classes):
    assert label_skew.label_distance(np.array(counts)) == pytest.approx(distance)
    assert label_skew.effective_classes(np.array(counts)) == pytest.approx(classes)


def test_the_label_distance_is_the_mean_over_all_pairs():
    counts = np.random.default_rng(0).integers(0, 9, (7, 4)) + 1
    shares = counts / counts.sum(axis=1, keepdims=True)
    pairs = [abs(shares[i] - shares[j]).sum() / 2 for i in range(7) for j in range(i)]
    assert label_skew.label_distance(counts) == pytest.approx(np.mean(pairs), rel=1e-12)


def test_skew_falls_with_alpha_and_is_described():
    distances = [
        label_skew.label_distance(common.label_counts(split(dirichlet(alpha=a), LIKE_MNIST).train, LIKE_MNIST[0], 10)) for a in (0.05, 0.5, 5)
    ]
    assert distances == sorted(distances, reverse=True) and distances[0] > 0.7 and distances[-1] < 0.25
    assert label_skew.describe_skew(np.array([[2, 0], [1, 1]])) == "label distance 0.50, 1.5 effective classes, 2 examples"
    with pytest.raises(ValueError, match="counts must be"):
        label_skew.label_distance(np.zeros((2, 3)))
