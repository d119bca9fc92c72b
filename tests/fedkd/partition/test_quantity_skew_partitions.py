"""Partitions with quantity skew: drawn sizes, and subsamples of another partition."""

import numpy as np
import pytest

from fedkd.partition import common
from fedkd.partition.classes_per_client import ClassesPerClient
from fedkd.partition.iid import IID
from fedkd.partition.long_tail import LongTail
from fedkd.partition.missing_labels import MissingLabels
from tests.fedkd.partition.small_partitions import DIGITS, LIKE_MNIST, MNIST_SIZES, dirichlet, quantity_skew, split, subsample

# ---------------------------------------------------------------------------------------------------------- quantity skew


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_sizes_have_the_moments_of_a_dirichlet_and_do_not_depend_on_labels(alpha):
    """The variance of a proportion is (1/K)(1 - 1/K) / (K alpha + 1)."""
    splits = [split(quantity_skew(alpha=alpha, min_size=1), LIKE_MNIST, 8, seed).train for seed in range(60)]
    shares = np.array([[len(index) for index in train] for train in splits]) / len(LIKE_MNIST[0])
    assert shares.var() == pytest.approx((1 / 8) * (7 / 8) / (8 * alpha + 1), rel=0.25)
    held = common.label_counts(splits[0], LIKE_MNIST[0], 10)
    big = held[held.sum(axis=1) > 2000]
    assert len(big) and abs(big / big.sum(axis=1, keepdims=True) - 0.1).max() < 0.05


def test_lognormal_sizes_have_the_configured_deviation():
    spread = [
        np.log([len(index) for index in split(quantity_skew(distribution="lognormal", sigma=s), LIKE_MNIST, 500).train]).std()
        for s in (0, 0.5, 1)
    ]
    assert spread == pytest.approx([0, 0.5, 1], abs=0.08)


def test_quantity_skew_refuses_values_out_of_range():
    for changes, rule in (
        ({"sigma": -1.0}, "sigma must be >= 0"),
        ({"distribution": "pareto"}, "distribution must be one of dirichlet, lognormal"),
    ):
        with pytest.raises(ValueError, match=rule):
            quantity_skew(**changes)


# -------------------------------------------------------------------------------------------- long tail and missing labels


def test_a_long_tail_has_exponential_class_sizes_and_keeps_all_at_factor_1():
    sizes = np.bincount(np.concatenate([LIKE_MNIST[0][own] for own in split(LongTail(base=IID(), factor=100.0), LIKE_MNIST, 7).train]))
    assert np.array_equal(sizes, [min(n, int(6742 * 100 ** (-c / 9) + 1e-9)) for c, n in enumerate(MNIST_SIZES[0])])
    assert all(map(np.array_equal, split(LongTail(base=dirichlet(), factor=1.0)).train, split(dirichlet()).train))
    with pytest.raises(ValueError, match="^factor must be >= 1"):
        LongTail(base=IID(), factor=0.5)
    with pytest.raises(ValueError, match="^base.min_size must be at most"):
        split(LongTail(base=dirichlet(min_size=900), factor=100.0))


@pytest.mark.parametrize("by", ["examples", "classes"])
def test_missing_labels_leave_a_share_of_examples_or_classes_and_the_local_test_sets(by):
    whole, labels = split(dirichlet(alpha=1.0), LIKE_MNIST), LIKE_MNIST[0]
    for share in (0.0, 0.5, 1.0):
        some = split(MissingLabels(base=dirichlet(alpha=1.0), share=share, by=by), LIKE_MNIST)
        assert all(map(np.array_equal, some.test, whole.test))
        for own, before in zip(some.train, whole.train):
            assert set(own) <= set(before) and (np.diff(own) > 0).all()
            now, then = (own, before) if by == "examples" else (np.unique(labels[own]), np.unique(labels[before]))
            assert len(now) == 1 if share == 1 else abs(len(now) - (1 - share) * len(then)) < 1
            assert by == "examples" or len(own) == np.isin(labels[before], now).sum(), "a class is labeled or not"
    with pytest.raises(ValueError, match="^by must be one of examples, classes, got 'x'"):
        MissingLabels(base=IID(), share=0.5, by="x")


# -------------------------------------------------------------------------------------------------------------- subsample


@pytest.mark.parametrize("base", [IID(), dirichlet(), ClassesPerClient(per_client=2)], ids=repr)
@pytest.mark.parametrize("changes", [{}, {"distribution": "dirichlet"}, {"sigma": 3.0, "min_size": 1}], ids=repr)
def test_clients_keep_a_part_of_their_examples_and_one_client_keeps_all(base, changes):
    whole, part = split(base), split(subsample(base, **changes))
    kept = np.array([len(index) / len(before) for index, before in zip(part.train, whole.train)])
    assert all(np.isin(index, before).all() for index, before in zip(part.train, whole.train))
    assert kept.max() == 1 and kept.min() < 0.6 and min(map(len, part.train)) >= changes.get("min_size", 2)
    for index, before, train, train_before in zip(part.test, whole.test, part.train, whole.train):
        lost = set(DIGITS[0][train_before]) - set(DIGITS[0][train])
        assert index.tolist() == [i for i in before if DIGITS[1][i] not in lost]


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_kept_fractions_are_lognormal_and_do_not_depend_on_labels(sigma):
    train = split(subsample(IID(), sigma=sigma), LIKE_MNIST, 300).train
    assert np.log([len(index) for index in train]).std() == pytest.approx(sigma, abs=4 * sigma / np.sqrt(2 * 300) + 0.02)
    total, expected = sum(map(len, train)), np.array(MNIST_SIZES[0]) / 60000
    held = common.label_counts(train, LIKE_MNIST[0], 10).sum(axis=0) / total
    assert (np.abs(held - expected) < 4 * np.sqrt(expected / total)).all()


def test_kept_fractions_have_the_mean_of_a_dirichlet():
    """The mean of a Dirichlet vector divided by its maximum."""
    train = [split(subsample(IID(), distribution="dirichlet", min_size=1), LIKE_MNIST, 10, seed).train for seed in range(60)]
    ours = np.mean([np.mean([len(index) for index in one]) / 6000 for one in train])
    expected = 0.1 / np.random.default_rng(0).dirichlet([0.5] * 10, 100_000).max(axis=1)
    assert ours == pytest.approx(expected.mean(), abs=4 * expected.std() / np.sqrt(60))


def test_subsample_refuses_values_out_of_range_and_errors_of_the_base():
    with pytest.raises(ValueError, match=r"min_size must be at most the size of the smallest client of base, \d+, got 100"):
        split(subsample(dirichlet(), min_size=100))
    with pytest.raises(ValueError, match="^base.per_client must be at most the number of classes"):
        split(subsample(ClassesPerClient(per_client=11)))
    with pytest.raises(ValueError, match="sigma must be >= 0"):
        subsample(IID(), sigma=-1.0)
    with pytest.raises(ValueError, match="distribution must be one of lognormal, dirichlet, got 'pareto'"):
        subsample(IID(), distribution="pareto")
    with pytest.raises(ValueError, match="alpha must be > 0"):
        subsample(IID(), alpha=0.0)
    with pytest.raises(ValueError, match="min_size must be a whole number >= 1"):
        subsample(IID(), min_size=0)
