"""Measures of label skew: values of small tables, and their behavior with alpha."""

import numpy as np
import pytest

from fedkd.metrics import label_skew
from fedkd.partition import common
from tests.fedkd.partition.small_partitions import LIKE_MNIST, dirichlet, split


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
def test_values_of_small_tables(counts, distance, classes):
    assert label_skew.label_distance(np.array(counts)) == pytest.approx(distance)
    assert label_skew.effective_classes(np.array(counts)) == pytest.approx(classes)


def test_the_label_distance_is_the_mean_over_all_pairs():
    counts = np.random.default_rng(0).integers(0, 9, (7, 4)) + 1
    shares = counts / counts.sum(axis=1, keepdims=True)
    pairs = [abs(shares[i] - shares[j]).sum() / 2 for i in range(7) for j in range(i)]
    assert label_skew.label_distance(counts) == pytest.approx(np.mean(pairs), rel=1e-12)


def test_skew_decreases_with_alpha_and_is_described():
    distances = [
        label_skew.label_distance(common.label_counts(split(dirichlet(alpha=a), LIKE_MNIST).train, LIKE_MNIST[0], 10))
        for a in (0.05, 0.5, 5)
    ]
    assert distances == sorted(distances, reverse=True) and distances[0] > 0.7 and distances[-1] < 0.25
    assert label_skew.describe_skew(np.array([[2, 0], [1, 1]])) == "label distance 0.50, 1.5 effective classes, 2 examples"
    with pytest.raises(ValueError, match="counts must be"):
        label_skew.label_distance(np.zeros((2, 3)))
