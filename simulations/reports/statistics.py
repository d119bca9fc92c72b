"""Statistics over seeds: intervals of means, paired tests, correction for many tests, and fairness over clients."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import stdtrit
from statsmodels.stats.multitest import multipletests

INTERVALS = {
    "t": "Student's t over seeds",
    "bootstrap": "bias-corrected and accelerated (BCa) bootstrap over seeds, 9,999 resamples from a fixed seed",
}
"""The kinds of 95 % interval, and how each is computed."""

TOO_NARROW = "A bootstrap interval of fewer than ten seeds is too narrow: n seeds have few different resamples (10 at n = 3)."

MIN_PAIRS = 6
"""Pairs with which the exact two-sided Wilcoxon test can reach p < 0.05."""


def spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [n, ...] -> [...], [...]
    """The mean over the first axis and the half-width of its 95 % interval (Student's t).

    The half-width is NaN for n < 3: the interval of two seeds is 12.7 times as long as their range. Both are NaN for n = 0.
    """
    n = len(values)
    mean = np.mean(values, axis=0) if n else np.full(np.shape(values)[1:], np.nan)
    if n < 3:
        return mean, np.full_like(mean, np.nan, dtype=float)
    return mean, stdtrit(n - 1, 0.975) * np.std(values, axis=0, ddof=1) / np.sqrt(n)


def is_range(n: int, kind: str) -> bool:
    """The range of both seeds stands for an interval: Student's t would be 12.7 times as long, and a bootstrap gives the range anyway."""
    return n == 2 and kind != "std"


def interval(values: ArrayLike, kind: str = "t") -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # [n, ...] -> 3 x [...]
    """The mean over the first axis, and the lower and upper end of what surrounds it.

    At n = 2 the ends are the lowest and the highest value, unless ``kind`` is ``std``; see :func:`is_range`. The ends are NaN for n = 1.
    All three are NaN where any of the n values is NaN.

    Args:
        values: one row per seed.
        kind: ``t`` or ``bootstrap`` for the 95 % interval of the mean, ``std`` for one standard deviation (n - 1) on each side.
    """
    values = np.asarray(values, float)
    mean, half = spread(values)
    if is_range(len(values), kind):
        return mean, values.min(axis=0), values.max(axis=0)
    if kind == "std" and len(values) > 1:
        half = np.std(values, axis=0, ddof=1)
    if kind != "bootstrap" or len(values) < 2:
        return mean, mean - half, mean + half
    flat = values.reshape(len(values), -1)
    low, high = np.tile(flat.mean(axis=0), (2, 1))  # a column of equal values has no other resample
    varied = np.isfinite(flat).all(axis=0) & (np.ptp(flat, axis=0) > 0)
    for start in range(0, int(varied.sum()), 64):  # the resamples of 64 columns fit into memory
        columns = np.flatnonzero(varied)[start : start + 64]
        rng = np.random.default_rng(0)
        found = stats.bootstrap((flat[:, columns],), np.mean, axis=0, method="BCa", n_resamples=9999, vectorized=True, rng=rng)
        low[columns], high[columns] = found.confidence_interval
    return mean, low.reshape(mean.shape), high.reshape(mean.shape)


@dataclass(frozen=True)
class Paired:
    """Statistics of n paired differences.

    A field is NaN where n is too small, or where all differences are equal and the statistic is undefined.

    Args:
        n: number of pairs.
        mean: of the differences.
        low: lower end of the 95 % interval of the mean; at n = 2 the lower difference.
        high: upper end of that interval; at n = 2 the higher difference.
        effect: Cohen's d_z, the mean over the standard deviation of the differences.
        t_test: two-sided p of the paired t test; 1 where no difference is nonzero.
        wilcoxon: two-sided p of the exact Wilcoxon signed-rank test; 1 where no difference is nonzero.
    """

    n: int
    mean: float
    low: float
    high: float
    effect: float
    t_test: float
    wilcoxon: float


def paired(differences: ArrayLike, kind: str = "t") -> Paired:
    """The paired t test and the exact Wilcoxon signed-rank test, both two-sided.

    Args:
        differences: one per pair; NaN for a pair without a difference.
        kind: of the interval, one of :data:`INTERVALS`.
    """
    values = np.asarray(differences, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return Paired(0, *[float("nan")] * 6)
    mean, low, high = (float(value) for value in interval(values, kind))
    varied = len(values) > 1 and np.ptp(values) > 1e-12
    effect = mean / float(np.std(values, ddof=1)) if varied else float("nan")
    t_test = float(stats.ttest_1samp(values, 0).pvalue) if varied else 1.0 if len(values) > 1 and not values.any() else float("nan")
    return Paired(len(values), mean, low, high, effect, t_test, signed_ranks(values))


def signed_ranks(values: np.ndarray) -> float:  # [n]
    """The p-value of the exact two-sided Wilcoxon signed-rank test; 1 where no value differs from 0, NaN for n = 1.

    Where differences are 0 or equal in size, the distribution is that over all signs of these ranks. With more than 16 such pairs it is the
    normal approximation.
    """
    values = np.round(values, 12)  # rounding errors must not break ties
    if len(values) < 2:
        return float("nan")
    sizes = np.abs(values[values != 0])
    if len(sizes) < 2:  # both signs of one difference are equally likely
        return 1.0
    if len(np.unique(sizes)) == len(values):
        return float(stats.wilcoxon(values, method="exact").pvalue)
    if len(sizes) > 16:
        return float(stats.wilcoxon(values, method="asymptotic").pvalue)
    ranks = stats.rankdata(sizes) * np.sign(values[values != 0])
    return float(stats.permutation_test((ranks,), np.sum, permutation_type="samples", vectorized=True, n_resamples=np.inf).pvalue)


def smallest_p(n: int) -> float:
    """The smallest p-value of an exact two-sided Wilcoxon signed-rank test of ``n`` pairs, reached where all signs are equal."""
    return min(1.0, 2.0 ** (1 - n))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's correction over a family of tests. Tests whose p is NaN are not in the family."""
    p_values = np.asarray(p_values, float)
    corrected = np.full_like(p_values, np.nan)
    tested = np.isfinite(p_values)
    if tested.any():
        corrected[tested] = multipletests(p_values[tested], method="holm")[1]
    return corrected


def jain_index(values: np.ndarray) -> float:  # [K]
    """Jain's index ``(sum x)^2 / (K sum x^2)``: 1 if all values are equal, 1/K if one client has everything, NaN if all are 0."""
    values = np.asarray(values, float)
    total = len(values) * (values**2).sum()
    return float(values.sum() ** 2 / total) if total else float("nan")


def bottom_tenth(values: np.ndarray) -> float:  # [K]
    """The mean of the lowest tenth of the values, at least of one; NaN without values."""
    return float(np.sort(values)[: max(1, len(values) // 10)].mean()) if len(values) else float("nan")
