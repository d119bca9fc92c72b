"""Statistics over seeds against SciPy's own objects, and against every sign that a difference could have had."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from simulations.reports.statistics import bottom_tenth, holm, interval, jain_index, paired, signed_ranks, smallest_p


def every_sign(values: list[float]) -> float:
    """The two-sided p-value of the signed-rank test by enumeration: zeros out, ties share their mean rank."""
    values = np.array([value for value in np.round(values, 12) if value])
    ranks = stats.rankdata(np.abs(values))
    sums = np.array([sum(rank for rank, sign in zip(ranks, signs) if sign) for signs in product((0, 1), repeat=len(ranks))])
    seen = ranks[values > 0].sum()
    return min(1.0, 2 * min(np.mean(sums <= seen + 1e-9), np.mean(sums >= seen - 1e-9)))


@pytest.mark.parametrize("n", [3, 10])
def test_the_t_interval_is_scipy_s(n):
    values = np.random.default_rng(n).normal(size=(n, 4))
    mean, low, high = interval(values)
    found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(np.array([mean, low, high]), np.array([values.mean(0), found.low, found.high]), rtol=1e-10)


def test_the_bootstrap_interval_is_scipy_s_column_by_column_and_the_same_every_time():
    values = np.random.default_rng(0).exponential(size=(6, 130))
    mean, low, high = interval(values, "bootstrap")
    one = stats.bootstrap((values[:, 100],), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(5)).confidence_interval
    assert (low[100], high[100]) == pytest.approx((one.low, one.high), rel=0.03)
    assert ((low < mean) & (mean < high)).all() and np.array_equal(interval(values, "bootstrap")[1], low)
    skewed = np.array([0.0, 0, 0, 0, 0, 0, 0, 0, 0, 10])
    mean, low, high = interval(skewed, "bootstrap")
    assert high - mean > 1.5 * (mean - low), "it is no interval with equal sides"


@pytest.mark.parametrize("kind", ["t", "bootstrap"])
def test_intervals_where_there_is_little_to_say(kind):
    values = np.array([[1.0, 2.0, np.nan], [1.0, 3.0, 1.0]])
    mean, low, high = interval(values, kind)
    assert (mean[0], low[0], high[0]) == (1, 1, 1) and low[1] < 2.5 < high[1] and np.isnan([mean[2], low[2], high[2]]).all()
    assert (low[1], high[1]) == (2, 3), "two seeds have their range"
    mean, low, high = interval(values[1:], kind)
    assert mean[1] == 3 and np.isnan([low, high]).all(), "one seed has no interval"


@pytest.mark.parametrize(
    "values",
    [
        [0.3, 0.1, 0.2],
        [0.3, -0.1, 0.2, 0.5],
        [0.1, 0.1, 0.1, -0.1, 0.2],
        [0.0, 0.2, 0.4, -0.1],
        [0.0, 0.2],
        [0.0, 0.0, -0.2],
        [0.3 - 0.2, 0.1, -0.2, 0.4, 0.5, 0.7, 0.9],
    ],
)
def test_the_wilcoxon_test_is_that_over_all_signs(values):
    assert signed_ranks(np.array(values)) == pytest.approx(every_sign(values), abs=1e-9)


@pytest.mark.parametrize("n", range(2, 9))
def test_no_p_is_below_the_smallest(n):
    assert smallest_p(n) == every_sign(list(range(1, n + 1))) == signed_ranks(np.arange(1.0, n + 1))
    assert smallest_p(3) == 0.25


def test_paired_differences():
    ours, base = np.array([0.7, 0.72, 0.8, 0.9]), np.array([0.6, 0.65, 0.69, 0.91])
    found = paired(ours - base)
    assert found.n == 4 and found.mean == pytest.approx(0.0675)
    assert found.t_test == pytest.approx(stats.ttest_rel(ours, base).pvalue)
    assert found.effect == pytest.approx(stats.ttest_rel(ours, base).statistic / 2)  # d_z = t / sqrt(n)
    assert (found.low + found.high) / 2 == pytest.approx(found.mean)


def test_paired_differences_that_say_nothing():
    one = paired([0.1])
    assert one.n == 1 and one.mean == 0.1 and np.isnan([one.low, one.high, one.effect, one.t_test, one.wilcoxon]).all()
    same = paired([0.3 - 0.2, 0.1, 0.2 - 0.1])
    assert np.isnan([same.effect, same.t_test]).all() and same.wilcoxon == 0.25
    assert paired([0.0, 0.0]).wilcoxon == paired([0.0, 0.0]).t_test == 1 and paired([np.nan, np.nan]).n == 0


def test_holm_s_correction_by_hand():
    found = holm([0.01, np.nan, 0.04, 0.03, 0.5])
    assert found[[0, 2, 3, 4]] == pytest.approx([0.04, 0.09, 0.09, 0.5]) and np.isnan(found[1])
    assert np.isnan(holm([np.nan])).all()


def test_fairness_over_clients():
    assert jain_index(np.array([0.5, 0.5])) == 1 and jain_index(np.array([1.0, 0, 0, 0])) == 0.25 and np.isnan(jain_index(np.zeros(3)))
    assert jain_index(np.array([1.0, 2, 3])) == pytest.approx(36 / 42)
    assert bottom_tenth(np.arange(20.0)) == 0.5 and bottom_tenth(np.array([3.0, 1.0])) == 1
