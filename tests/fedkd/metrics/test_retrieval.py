"""Image retrieval agrees with a slow implementation, for both interpolations."""

import numpy as np
import pytest
import torch

from fedkd.metrics.retrieval import retrieval
from tests import distillation_oracles

RNG = np.random.default_rng(0)
DATABASE, QUERIES = RNG.standard_normal((40, 3)), RNG.standard_normal((11, 3))
DATABASE[[3, 7]], DATABASE[30] = (2, 0, 0), 0  # equal rows with different labels, and a zero row
LABELS, QUERY_LABELS = RNG.integers(0, 4, 40), RNG.integers(0, 4, 11)
LABELS[:8] = [0, 1, 2, 3, 0, 1, 2, 4]  # label 4 occurs once, label 5 never
QUERY_LABELS[:3] = [3, 4, 5]


def retrieved(**options) -> tuple:
    found = retrieval(*(torch.from_numpy(array) for array in (DATABASE, LABELS, QUERIES, QUERY_LABELS)), **options)
    return found.mean_average_precision, found.precision_at_k, found.precision_at_1


@pytest.mark.parametrize("batch_size", [1, 4, 128])
@pytest.mark.parametrize("first", [5, 100])
@pytest.mark.parametrize("interpolation", ["full", "official"])
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_retrieval_equals_a_slow_implementation(similarity, interpolation, first, batch_size):
    expected = distillation_oracles.retrieval(DATABASE, LABELS, QUERIES, QUERY_LABELS, similarity, interpolation, first, batch_size)
    assert retrieved(similarity=similarity, interpolation=interpolation, first=first, batch_size=batch_size) == pytest.approx(
        expected, rel=1e-12
    )


def test_the_official_interpolation_is_at_most_the_full_one():
    """Only the official one depends on the number of queries per batch. With as many as the database has rows, it is the full one."""
    full = retrieved(similarity="cosine", interpolation="full", first=5)
    assert full == pytest.approx(retrieved(similarity="cosine", interpolation="full", first=5, batch_size=2), rel=1e-12)
    few, more = (retrieved(similarity="cosine", interpolation="official", first=5, batch_size=n) for n in (2, 11))
    assert few[0] < more[0] <= full[0] and full[2] <= few[2] < more[2]
    queries = (torch.from_numpy(np.tile(array, (4, 1) if array.ndim == 2 else 4)) for array in (QUERIES, QUERY_LABELS))
    all_at_once = retrieval(
        torch.from_numpy(DATABASE), torch.from_numpy(LABELS), *queries, similarity="cosine", interpolation="official", first=5
    )
    assert all_at_once.mean_average_precision == pytest.approx(full[0], rel=1e-12)


def test_retrieval_among_separate_classes_is_perfect_and_cosine_ignores_norms():
    labels = torch.arange(12) % 3
    x = torch.nn.functional.one_hot(labels, 3).double() * torch.arange(1, 13)[:, None]
    perfect, by_distance = (
        retrieval(x, labels, x[:3] * 20, labels[:3], similarity=how, interpolation="full", first=4) for how in ("cosine", "euclidean")
    )
    assert (perfect.mean_average_precision, perfect.precision_at_k, perfect.precision_at_1) == (1, 1, 1)
    swapped = retrieval(x, labels, -x[:3], labels[:3], similarity="cosine", interpolation="full", first=4)
    assert (swapped.precision_at_k, swapped.precision_at_1) == (0, 0)
    assert by_distance.precision_at_1 == 1
    with pytest.raises(ValueError, match="similarity must be one of cosine, euclidean, got 'c'"):
        retrieval(x, labels, x, labels, similarity="c", interpolation="full")
    with pytest.raises(ValueError, match="interpolation must be one of full, official, got 'half'"):
        retrieval(x, labels, x, labels, similarity="cosine", interpolation="half")
    with pytest.raises(ValueError, match="retrieval must have a database and queries"):
        retrieval(x[:0], labels[:0], x, labels, similarity="cosine", interpolation="full")
