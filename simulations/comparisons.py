"""Tests of strategies against a baseline: the same seeds draw the same partition, so that runs of one seed are pairs."""

from collections.abc import Iterable, Sequence

import numpy as np

from simulations.groups import Group
from simulations.statistics import ENOUGH, INTERVALS, Paired, holm, paired, smallest_p
from simulations.summaries import COMPARED, HEADLINES, baselines, by_seed, is_baseline
from simulations.tables import DASH, Cell, Column, Table, counts, numbers, of_interval, texts

LEGEND = """Difference from the baseline in percentage points, seed by seed: mean with its 95 % interval ({kind}), and d, the mean over the
standard deviation of the differences (Cohen's d_z). p: two-sided, paired t test and exact Wilcoxon signed-rank test; Holm: corrected for the
{number} comparisons of this table."""


def pairs(groups: Sequence[Group], baseline: str) -> list[tuple[Group, Group]]:
    """Each group with the baseline's to which it is compared; once where both are tuned and untuned at once."""
    found = {}
    for one in groups:
        for base in baselines(one, groups, baseline):
            found.setdefault((one.runs, base.runs), (one, base))
    return list(found.values())


def unpaired(groups: Sequence[Group], baseline: str) -> list[str]:
    """A note on each group that has no counterpart to be compared with, where the baseline is there at all."""
    if not any(is_baseline(one, baseline) for one in groups):
        return []
    alone = [one for one in groups if not is_baseline(one, baseline) and not baselines(one, groups, baseline)]
    said = f"no run of {baseline} has the same setting, training and seeds, hence no comparison"
    return [f"{one.label} (seeds {' '.join(map(str, one.seeds))}): {said}" for one in alone]


def comparisons(groups: Sequence[Group], baseline: str, kind: str = "t") -> Table | None:
    """The tests of all groups against the baseline in the headlines of :data:`COMPARED`; None where no two seeds are paired."""
    tested = [(one, base, name, _paired(one, base, name, kind)) for name in COMPARED for one, base in pairs(groups, baseline)]
    tested = [row for row in tested if row[3].n]
    if not any(row[3].n > 1 for row in tested):
        return None
    found = [row[3] for row in tested]
    columns = [
        texts("strategy", [one.label for one, *_ in tested]),
        texts("less", [base.label for _, base, *_ in tested]),
        texts("accuracy", [HEADLINES[name] for *_, name, _ in tested]),
        counts("n", [test.n for test in found]),
        Column("difference", tuple(of_interval(test.mean, test.low, test.high, test.n, kind, sign="+") for test in found)),
        numbers("d", [test.effect for test in found], "+.2f"),
    ]
    for title, found_p in (("t", [test.t_test for test in found]), ("Wilcoxon", [test.wilcoxon for test in found])):
        columns += [p_values(f"p, {title}", found_p), p_values(f"p, {title}, Holm", holm(found_p))]
    number = sum(np.isfinite(test.wilcoxon) for test in found)
    legend = "\n".join([LEGEND.format(kind=INTERVALS[kind], number=number), *warnings(found)])
    return Table("comparisons", "Tests against the baseline", tuple(columns), legend, tuple((row[2], row[0].setting) for row in tested))


def warnings(found: Sequence[Paired]) -> list[str]:
    """What so few seeds cannot show, in sentences."""
    sizes, number = {test.n for test in found}, sum(np.isfinite(test.wilcoxon) for test in found)
    lines = few(sizes, number)
    if len(sizes) == 1 and (n := max(sizes)) >= ENOUGH and (corrected := min(1.0, number * smallest_p(n))) >= 0.05:
        lines.append(
            f"n = {n} is too few for {number} comparisons: corrected for them the exact Wilcoxon test cannot have a p below {corrected:.3g}."
        )
    return lines


def few(pairs: Iterable[int], number: int) -> list[str]:
    """What fewer ``pairs`` than :data:`~simulations.statistics.ENOUGH` cannot show where ``number`` comparisons are made together."""
    lines, numbers = [], sorted({int(n) for n in pairs if n > 0})  # NaN: nothing is compared
    for n in (n for n in numbers if n < ENOUGH):
        if n == 1:
            lines.append("n = 1: a single pair has no interval, and nothing is tested.")
            continue
        corrected = min(1.0, number * smallest_p(n))
        family = f"; corrected for {number} comparisons no p below {corrected:.3g}" if number > 1 and len(numbers) == 1 else ""
        lines.append(
            f"n = {n} is too few: the exact two-sided Wilcoxon test cannot have a p below {smallest_p(n):.3g}{family}. "
            f"The t test can, but rests on normal differences, which {n} cannot show."
        )
    return lines


def _paired(one: Group, base: Group, name: str, kind: str) -> Paired:
    return paired(100 * np.subtract(by_seed(one, name), by_seed(base, name)), kind)


def p_values(title: str, values: Sequence[float]) -> Column:
    """p-values, small ones as a bound."""
    return Column(title, tuple(Cell(DASH if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001", float(p)) for p in values))
