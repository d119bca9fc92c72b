"""Tables of federated runs: results, strategies by setting, cost to a target, and tests against a baseline."""

from collections.abc import Iterable, Sequence

import numpy as np

from simulations.reports import summary
from simulations.reports.groups import Group, place
from simulations.reports.statistics import ENOUGH, INTERVALS, TOO_NARROW, Paired, holm, interval, paired, smallest_p
from simulations.reports.summary import baselines, blocks, by_seed, is_baseline, settings
from simulations.reports.tables.table import DASH, Cell, Column, Table, counts, numbers, of_interval, over_seeds, ranked, texts
from simulations.run_folder.metric_names import COMPARED, HEADLINES

INTERVAL = {"t": "± half-width of its 95 % interval", "bootstrap": "[95 % interval]"}

RESULTS_LEGEND = """Accuracy in %: mean over n seeds {interval} ({kind}; none at n = 1).
Test: the balanced test of the global model. Own: on the labels that each client holds. Worst tenth: of the clients, last round.
Last: the last evaluated round. Last ten: mean of the last ten evaluated rounds, or of all where there are fewer.
Top-5 rounds: own labels, the mean of each seed's five best rounds: FedGen's published figure, selected on the test set.
MB: 10^6 bytes, all rounds and clients, mean over seeds."""

TUNED = "Tuned: with a value chosen on held-out training data (simulations.experiments.tuning); untuned: with that of the configuration. They are ranked apart."


def said(kind: str) -> str:
    """What a mean's interval is."""
    return f"mean over n seeds {INTERVAL[kind]} ({INTERVALS[kind]}; none at n = 1)"


def headlines(groups: Sequence[Group], kind: str) -> Table:
    """A row a group: accuracies and bytes."""
    columns = [texts("strategy", [one.label for one in groups]), counts("n", [len(one.runs) for one in groups])]
    columns += [Column(title, ranked(percents(groups, name, kind), blocks(groups))) for name, title in HEADLINES.items()]
    columns.append(Column("top-5 rounds", tuple(percents(groups, "best5_rounds", kind))))
    for way in ("up", "down"):
        columns.append(numbers(f"MB {way}", [np.mean(by_seed(one, f"bytes_{way}_total")) / 1e6 for one in groups], ".4g"))
    legend = RESULTS_LEGEND.format(interval=INTERVAL[kind], kind=INTERVALS[kind])
    legend += f"\n{TUNED}" if groups[0].tuned else ""
    legend += f"\n{TOO_NARROW}" if kind == "bootstrap" else ""
    return Table("headlines", "", tuple(columns), legend, blocks(groups))


def percents(groups: Sequence[Group], name: str, kind: str) -> list[Cell]:
    """A share in percent for each group; a dash where there is none (a strategy without a global model)."""
    return [over_seeds([100 * value for value in by_seed(one, name)], kind) for one in groups]


def by_setting(groups: Sequence[Group], kind: str) -> list[Table]:
    """Tables of a row a strategy and a column a setting, where there are several of both."""
    lines = ordered_lines(groups)
    if len(settings(groups)) < 2 or len(lines) < 2:
        return []
    tuned = {one.line: one.tuned for one in groups}
    alike = {len(one.runs) for one in groups}
    tables = []
    for name in COMPARED:
        found = {(one.line, one.setting): cell for one, cell in zip(groups, percents(groups, name, kind), strict=True)}
        columns = [texts("strategy", lines)]
        for setting in settings(groups):
            cells = [found.get((line, setting), Cell("")) for line in lines]
            cells = cells if len(alike) == 1 else [_with_n(cell) for cell in cells]
            columns.append(Column(setting, ranked(cells, [tuned[line] for line in lines])))
        title = f"{HEADLINES[name][0].upper()}{HEADLINES[name][1:]}, by setting"
        legend = f"Accuracy in %: {said(kind)}; " + (f"n = {min(alike)} in every cell." if len(alike) == 1 else "n stands in each cell.")
        key = "own" if "own" in name else "test"
        tables.append(Table(f"by_setting_{key}", title, tuple(columns), legend, tuple(tuned[line] for line in lines)))
    return tables


def _with_n(cell: Cell) -> Cell:
    """The cell with its number of seeds."""
    return cell if cell.n is None else Cell(f"{cell.text} (n = {cell.n})", cell.value, cell.low, cell.high, cell.n)


def ordered_lines(groups: Sequence[Group]) -> list[str]:
    """The lines of all settings: tuned ones first, FedAvg first of each."""
    tuned = {one.line: one.tuned for one in groups}
    return sorted(tuned, key=lambda line: (tuned[line], place(line)))


def way(groups: Sequence[Group], target: float | None, kind: str) -> Table | None:
    """Simulated time and, with a ``target``, rounds, bytes and time until it; None where runs have neither."""
    totals = [by_seed(one, "simulated_seconds_total") for one in groups]
    if target is None and np.isnan(np.concatenate(totals)).all():
        return None
    ends = [interval(np.array(values), kind) for values in totals]
    cells = [summary.shown(*map(float, three), len(values), kind) for three, values in zip(ends, totals, strict=True)]
    columns = [
        texts("strategy", [one.label for one in groups]),
        counts("n", [len(one.runs) for one in groups]),
        Column("simulated s", tuple(cells)),
    ]
    judged_alike = [
        (one.block, all(run.metrics["global_test_accuracy"].notna().any() for run in one.runs)) for one in groups
    ]  # on one test, or on own labels
    for name, title in summary.WAYS.items() if target is not None else ():
        scale = 1e-6 if name == "bytes" else 1.0
        cells = []
        for one in groups:
            reached, spent = (scale * np.array(by_seed(one, f"{name}_{what}", target), float) for what in ("to_target", "spent"))
            cells.append(summary.to_target(reached, spent, tuple(map(float, interval(reached, kind))), kind))
        columns.append(Column(f"{title} to {100 * target:g} %", ranked(cells, judged_alike, ".4g", lowest=True)))
    legend = summary.LEGEND if target is None else f"{summary.LEGEND}\n{summary.TARGET_LEGEND.format(percent=100 * target)}"
    return Table("times", "What was spent", tuple(columns), legend, blocks(groups))


def differences(groups: Sequence[Group], baseline: str, kind: str) -> Table | None:
    """Each group less the baseline, paired by seed, in all headlines; None where there are no pairs."""
    found = pairs(groups, baseline)
    if not found:
        return None
    columns = [texts("strategy", [one.label for one, _ in found]), texts("less", [base.label for _, base in found])]
    columns.append(counts("n", [len(one.runs) for one, _ in found]))
    for name, title in HEADLINES.items():
        gains = [100 * np.subtract(by_seed(one, name), by_seed(base, name)) for one, base in found]
        columns.append(Column(title, tuple(over_seeds(gain, kind, sign="+") for gain in gains)))
    title = "Difference in percentage points, paired by seed"
    return Table("differences", title, tuple(columns), f"The {said(kind)}.", tuple(one.setting for one, _ in found))


COMPARISON_LEGEND = """Difference from the baseline in percentage points, seed by seed: mean with its 95 % interval ({kind}), and d, the mean over the
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
    legend = "\n".join([COMPARISON_LEGEND.format(kind=INTERVALS[kind], number=number), *warnings(found)])
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
    """What fewer ``pairs`` than :data:`~simulations.reports.statistics.ENOUGH` cannot show where ``number`` comparisons are made together."""
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
