"""Numbers over seeds: intervals of means, paired tests, corrections for many of them, and how evenly clients fare."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import stdtrit
from statsmodels.stats.multitest import multipletests

INTERVALS = {
    "t": "Student's t over seeds",
    "bootstrap": "bias-corrected and accelerated (BCa) bootstrap over seeds, 9,999 resamples from a fixed seed",
}
"""The kinds of 95 % interval, and how each is called."""

TOO_NARROW = "n seeds have few resamples (10 at n = 3): a bootstrap interval of fewer than ten seeds is too narrow, Student's t is not."

ENOUGH = 6
"""Seeds with which the exact two-sided Wilcoxon test can reach p < 0.05."""


def spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [n, ...] -> [...], [...]
    """The mean over the first axis and the half-width of its 95 % interval by Student's t (NaN where n is 1, both where n is 0)."""
    n = len(values)
    mean = np.mean(values, axis=0) if n else np.full(np.shape(values)[1:], np.nan)
    if n < 2:
        return mean, np.full_like(mean, np.nan, dtype=float)
    return mean, stdtrit(n - 1, 0.975) * np.std(values, axis=0, ddof=1) / np.sqrt(n)


def interval(values: np.ndarray, kind: str = "t") -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # [n, ...] -> 3 x [...]
    """The mean over the first axis, and the lower and upper end of its 95 % interval.

    The ends are NaN where n is 1, and all three where any of the n is NaN.

    Args:
        values: one row a seed.
        kind: of :data:`INTERVALS`.
    """
    values = np.asarray(values, float)
    mean, half = spread(values)
    if kind == "t" or len(values) == 1:
        return mean, mean - half, mean + half
    flat = values.reshape(len(values), -1)
    low, high = np.tile(flat.mean(axis=0), (2, 1))  # where all are equal, no resample differs
    varied = np.isfinite(flat).all(axis=0) & (np.ptp(flat, axis=0) > 0)
    for start in range(0, varied.sum(), 64):  # so many columns at a time as memory holds resamples of
        columns = np.flatnonzero(varied)[start : start + 64]
        rng = np.random.default_rng(0)
        found = stats.bootstrap((flat[:, columns],), np.mean, axis=0, method="BCa", n_resamples=9999, vectorized=True, rng=rng)
        low[columns], high[columns] = found.confidence_interval
    return mean, low.reshape(mean.shape), high.reshape(mean.shape)


@dataclass(frozen=True)
class Paired:
    """Differences of n pairs: mean, 95 % interval, Cohen's d_z (mean over standard deviation), and two-sided p-values (1 where none differs).

    NaN is what n does not suffice for, or what is undefined because all differences are the same.
    """

    n: int
    mean: float
    low: float
    high: float
    effect: float
    t_test: float
    wilcoxon: float


def paired(differences: Sequence[float], kind: str = "t") -> Paired:
    """The paired t test and the exact Wilcoxon signed-rank test, both two-sided, of differences whose interval is of this ``kind``."""
    values = np.asarray(differences, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return Paired(0, *[float("nan")] * 6)
    mean, low, high = map(float, interval(values, kind))
    varied = len(values) > 1 and np.ptp(values) > 1e-12
    effect = mean / float(np.std(values, ddof=1)) if varied else float("nan")
    t_test = float(stats.ttest_1samp(values, 0).pvalue) if varied else 1.0 if len(values) > 1 and not values.any() else float("nan")
    return Paired(len(values), mean, low, high, effect, t_test, signed_ranks(values))


def signed_ranks(values: np.ndarray) -> float:  # [n]
    """The p-value of the exact two-sided Wilcoxon signed-rank test; 1 where nothing differs from 0, NaN at n = 1.

    Where differences are 0 or equal in size the distribution is that over all signs of these very ranks; with more than 16 such pairs it is
    the normal approximation.
    """
    values = np.round(values, 12)  # ties that rounding has broken are ties
    if len(values) < 2:
        return float("nan")
    sizes = np.abs(values[values != 0])
    if not len(sizes):
        return 1.0
    if len(np.unique(sizes)) == len(values):
        return float(stats.wilcoxon(values, method="exact").pvalue)
    if len(sizes) > 16:
        return float(stats.wilcoxon(values, method="asymptotic").pvalue)
    ranks = stats.rankdata(sizes) * np.sign(values[values != 0])
    return float(stats.permutation_test((ranks,), np.sum, permutation_type="samples", vectorized=True, n_resamples=np.inf).pvalue)


def smallest_p(n: int) -> float:
    """The smallest p-value that an exact two-sided Wilcoxon signed-rank test of ``n`` pairs can have: all signs equal."""
    return min(1.0, 2.0 ** (1 - n))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's correction over a family of tests, those that are NaN left out of it."""
    p_values = np.asarray(p_values, float)
    corrected = np.full_like(p_values, np.nan)
    made = np.isfinite(p_values)
    if made.any():
        corrected[made] = multipletests(p_values[made], method="holm")[1]
    return corrected


def jain(values: np.ndarray) -> float:  # [K]
    """Jain's index ``(sum x)^2 / (K sum x^2)``: 1 where all are equal, 1/K where one has everything; NaN where all are 0."""
    values = np.asarray(values, float)
    total = len(values) * (values**2).sum()
    return float(values.sum() ** 2 / total) if total else float("nan")


def worst_tenth(values: np.ndarray) -> float:  # [K]
    """The mean of the lowest tenth, at least of one."""
    return float(np.sort(values)[: max(1, len(values) // 10)].mean()) if len(values) else float("nan")
