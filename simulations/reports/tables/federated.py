"""Tables of federated runs: results, strategies by setting, cost to a target, and tests against a baseline."""

from collections.abc import Iterable, Sequence

import numpy as np

from simulations.reports.arrangement import ordered_lines, ordered_settings
from simulations.reports.groups import Group, divergence
from simulations.reports.metrics import Metric
from simulations.reports.statistics import INTERVALS, MIN_PAIRS, TOO_NARROW, Paired, holm, interval, paired, smallest_p
from simulations.reports.summary import LAST_ROUNDS, RESOURCES, baselines, blocks, by_seed, has_clock, last_rounds, mean_of, summary
from simulations.reports.tables.table import (
    DASH,
    DIVERGED,
    NONE,
    RANGE_AT_TWO,
    Cell,
    Column,
    NumberFormat,
    Table,
    around,
    counts,
    numbers,
    of_interval,
    ranked,
    texts,
)
from simulations.run_folder.metric_names import FURTHER_HEADLINES, HEADLINES

RESULTS_LEGEND = """Accuracy in %: {cell}.
Global: the global model on the global test set. Local: on the local test sets of the tested clients.
Bottom 10 %: the lowest tenth of the tested clients, final round. Final: the last evaluated round. {last}
Best 5 rounds: local test accuracy, the five best rounds of each seed; FedGen's published metric, selected on the test set.
MB: 10^6 bytes, all clients and rounds, mean over seeds."""

TUNED = "Tuned: with a value selected on held-out training data (fedkd tune). Untuned: with the configured value. They are ranked apart."

CLOCK_LEGEND = "Simulated s: seconds on the clients' simulated clock, whole run; not the time of a machine."

TARGET_LEGEND = """To {percent:g} %: until the first evaluated round with that global test accuracy (local, without a global model).
MB: 10^6 bytes, uplink and downlink.
> a (k of n): k of n runs reach the target; a is a lower bound, because the other runs count with all that they spent."""

UNITS = {"rounds": "round", "bytes": "MB", "time": "simulated s"}
"""Headings of the resources until a target."""

COMPARISON_LEGEND = """Difference from the baseline in percentage points, paired by seed: mean with its 95 % interval ({kind}).
d: mean over standard deviation of the differences (Cohen's d_z). p: two-sided paired t test and exact Wilcoxon signed-rank test.
Holm: corrected for the {number} comparisons of this table."""


def heading(text: str, groups: Sequence[Group]) -> str:
    """A heading, which says the number of rounds where groups have fewer than ten: ``global acc., last 5``."""
    return text.replace(f"last {LAST_ROUNDS}", f"last {last_rounds(groups)}")


def last_rounds_legend(groups: Sequence[Group]) -> str:
    """A sentence that explains the headings with ``last``."""
    number = last_rounds(groups)
    fewer = any(len(one.runs[0].shape[1]) < number for one in groups if one.runs)
    return f"Last {number}: mean of the last {number} evaluated rounds{', or of all where there are fewer' if fewer else ''}."


def sample_legend(groups: Sequence[Group]) -> str:
    """A line, with the break before it, on local accuracies that are those of a sample of clients; empty where all clients are tested."""
    sampled = [(run.config.get("evaluation") or {}).get("clients") for one in groups for run in one.runs]
    if not (numbers := sorted({number for number in sampled if number is not None})):
        return ""
    some = " in some rows" if None in sampled else ""
    return f"\nLocal accuracies are{some} over a sample of {' or '.join(map(str, numbers))} clients, drawn anew for each evaluation."


def headlines(groups: Sequence[Group], form: NumberFormat) -> Table:
    """A row per group: accuracies and bytes."""
    columns = [texts("strategy", [one.row for one in groups]), counts("n", [len(one.runs) for one in groups])]
    for name, title in HEADLINES.items():
        columns.append(Column(heading(title, groups), ranked(percents(groups, name, form), blocks(groups), form.form)))
    for name, title in FURTHER_HEADLINES.items():
        if any(name in summary(run) for one in groups for run in one.runs):
            columns.append(Column(heading(title, groups), ranked(percents(groups, name, form), blocks(groups), form.form)))
    columns.append(Column("best 5 rounds", tuple(percents(groups, "best5_rounds", form))))
    for way in ("uplink", "downlink"):
        columns.append(numbers(f"{way} MB", [mean_of(np.array(by_seed(one, f"{way}_bytes_total"))) / 1e6 for one in groups], ".4g"))
    legend = RESULTS_LEGEND.format(cell=form.legend, last=last_rounds_legend(groups)) + sample_legend(groups)
    legend += f"\n{DIVERGED}" if divergence(groups) else ""
    legend += f"\n{TUNED}" if groups[0].tuned else ""
    legend += f"\n{TOO_NARROW}" if form.kind == "bootstrap" else ""
    return Table("headlines", "All results", tuple(columns), legend, blocks(groups))


def percents(groups: Sequence[Group], name: str, form: NumberFormat) -> list[Cell]:
    """A metric in percent for each group; a dash for a strategy without a global model."""
    return [form.percent(by_seed(one, name)) for one in groups]


def by_setting(groups: Sequence[Group], metrics: Sequence[Metric], form: NumberFormat) -> list[Table]:
    """A table per metric with a row per strategy and a column per setting; none with one strategy or one setting."""
    lines, settings = ordered_lines(groups), ordered_settings(groups)
    if len(settings) < 2 or len(lines) < 2:
        return []
    tuned = [_tuned(groups)[line] for line in lines]
    tables = []
    for metric in metrics:
        found = _cells(groups, metric, form)
        columns = [texts("strategy", lines)]
        columns += [Column(one, ranked([found[line, one] for line in lines], tuned, form.form)) for one in settings]
        title = heading(f"{_capital(metric.heading)}, by setting", groups)
        tables.append(Table(f"by_setting_{_short(metric)}", title, tuple(columns), _setting_legend(groups, form), tuple(tuned)))
    return tables


def settings_by_strategies(groups: Sequence[Group], metrics: Sequence[Metric], form: NumberFormat) -> Table | None:
    """One table with a row per setting and a column per strategy, a block per metric; None with one strategy or one setting."""
    lines, settings = ordered_lines(groups), ordered_settings(groups)
    if len(settings) < 2 or len(lines) < 2:
        return None
    tuned = [_tuned(groups)[line] for line in lines]
    rows = [(metric, one) for metric in metrics for one in settings]
    cells = []
    for metric, one in rows:
        found = _cells(groups, metric, form)
        cells.append(ranked([found[line, one] for line in lines], tuned, form.form))
    named = [texts("metric", [heading(metric.heading, groups) for metric, _ in rows])] if len(metrics) > 1 else []
    columns = [*named, texts("setting", [one for _, one in rows])]
    columns += [Column(line, tuple(row[place] for row in cells)) for place, line in enumerate(lines)]
    title = "Results by setting" if named else heading(f"{_capital(metrics[0].heading)}, by setting", groups)
    legend, blocks_ = _setting_legend(groups, form), tuple(metric.name for metric, _ in rows)
    return Table("by_setting", title, tuple(columns), legend, blocks_, marked_by="row")


def _tuned(groups: Sequence[Group]) -> dict[str, str]:
    """Whether each line is tuned."""
    return {one.line: one.tuned for one in groups}


def _cells(groups: Sequence[Group], metric: Metric, form: NumberFormat) -> dict[tuple[str, str], Cell]:
    """A cell for each line and setting, with n where it differs, and how many diverged; empty where the runs are missing."""
    found = {(line, setting): Cell("") for line in ordered_lines(groups) for setting in ordered_settings(groups)}
    same = len({len(one.runs) for one in groups}) == 1 and not divergence(groups)
    for one, cell in zip(groups, percents(groups, metric.name, form), strict=True):
        shown = cell.text if same else f"{cell.text} (n = {cell.n}{divergence([one])})"
        shown = shown if one.runs else divergence([one]).removeprefix(", ")
        found[one.line, one.setting] = Cell(shown, cell.value, cell.low, cell.high, cell.n)
    return found


def _setting_legend(groups: Sequence[Group], form: NumberFormat) -> str:
    """The meaning of a cell, and n."""
    sizes = {len(one.runs) for one in groups}
    lost = divergence(groups)
    number = f"n = {min(sizes)} in every cell" if len(sizes) == 1 and not lost else "n stands in each cell"
    return f"Accuracy in %: {form.legend}; {number}." + (f"\n{DIVERGED.replace('row', 'cell')}" if lost else "")


def _capital(text: str) -> str:
    """The text with a capital letter."""
    return text[:1].upper() + text[1:]


def _short(metric: Metric) -> str:
    """A metric in the name of a file: ``global`` and ``local`` for the default ones."""
    return {"global_test_accuracy_last10": "global", "local_test_accuracy_last10": "local"}.get(metric.name, metric.name)


def cost_to_target(groups: Sequence[Group], target: float | None, form: NumberFormat) -> Table | None:
    """Simulated time where a clock is configured and, with a ``target``, rounds, bytes and time until it; None with neither."""
    clock = has_clock(groups)
    if target is None and not clock:
        return None
    columns = [texts("strategy", [one.row for one in groups]), counts("n", [len(one.runs) for one in groups])]
    if clock:
        totals = [by_seed(one, "simulated_seconds_total") for one in groups]
        columns.append(Column("simulated s", tuple(resource(values, form) for values in totals)))
    judged_alike = [(one.block, _has_global_model(one)) for one in groups]
    names = [name for name in RESOURCES if name != "time" or clock] if target is not None else []
    for name in names:
        cells = [_until_target(one, name, target, form) for one in groups]
        columns.append(Column(f"{UNITS[name]} to {_percent(target):g} %", ranked(cells, judged_alike, ".4g", lowest=True)))
    legend = [CLOCK_LEGEND] if clock else []
    legend += [TARGET_LEGEND.format(percent=_percent(target))] if target is not None else []
    return Table("times", "Cost and rounds to target", tuple(columns), "\n".join(legend), blocks(groups))


def _percent(target: float | None) -> float:
    """A target in percent."""
    return round(100 * (target or 0.0), 6)


def _has_global_model(one: Group) -> bool:
    """All runs were tested on the global test set, so that the target is one of global test accuracy."""
    return all(run.metrics["global_test_accuracy"].notna().any() for run in one.runs)


def _until_target(one: Group, name: str, target: float | None, form: NumberFormat) -> Cell:
    """A resource until the target: a mean with its interval where all seeds reach it, else a lower bound and how many do."""
    scale = 1e-6 if name == "bytes" else 1.0
    reached, spent = (scale * np.array(by_seed(one, f"{name}_{which}", target), float) for which in ("to_target", "spent"))
    number, n = int(np.isfinite(reached).sum()), len(reached)
    if np.isnan(spent).any():
        return Cell(DASH, n=n)
    if number < n:
        bound = float(np.mean(spent))
        return Cell(f"> {digits(bound)} ({number} of {n})", NONE, bound, NONE, n)
    return resource(reached, form)


def resource(values: Sequence[float] | np.ndarray, form: NumberFormat) -> Cell:
    """``812.4 ± 10.13``; no interval for one seed, and a dash where there is nothing."""
    mean, low, high = (float(value) for value in interval(np.asarray(values, float), form.kind))
    if np.isnan(mean) or np.isnan(low):
        return Cell(DASH if np.isnan(mean) else digits(mean), mean, n=len(values))
    shown = digits(mean) + around(digits(low), digits(high), digits(high - mean), len(values), form.kind)
    return Cell(shown, mean, low, high, len(values))


def digits(value: float) -> str:
    """A number with four digits, and all before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def differences(groups: Sequence[Group], baseline: str, form: NumberFormat) -> Table | None:
    """Each group minus its baseline, paired by seed, in all headline metrics; None where there are no pairs."""
    found = pairs(groups, baseline)
    if not found:
        return None
    columns = [texts("strategy", [one.row for one, _ in found]), texts("baseline", [base.row for _, base in found])]
    columns.append(counts("n", [len(one.runs) for one, _ in found]))
    for name, title in HEADLINES.items():
        gains = [np.subtract(by_seed(one, name), by_seed(base, name)) for one, base in found]
        columns.append(Column(heading(title, groups), tuple(form.of_differences.percent(gain, sign="+") for gain in gains)))
    title, legend = "Difference in percentage points, paired by seed", _capital(f"{form.of_differences.legend}.")
    return Table("differences", title, tuple(columns), legend, tuple(one.setting for one, _ in found))


def pairs(groups: Sequence[Group], baseline: str) -> list[tuple[Group, Group]]:
    """Each group with the group that it is compared with; once where both are tuned and untuned."""
    found: dict[tuple, tuple[Group, Group]] = {}
    for one in groups:
        for base in baselines(one, groups, baseline):
            found.setdefault((one.runs, base.runs), (one, base))
    return list(found.values())


def unpaired(groups: Sequence[Group], baseline: str) -> list[str]:
    """A note on each group without a baseline to compare with, where there are runs of the baseline."""
    if not any(one.is_called(baseline) for one in groups):
        return []
    alone = [one for one in groups if not one.is_called(baseline) and not baselines(one, groups, baseline)]
    reason = f"no run of {baseline} has the same setting, training and seeds, hence no comparison"
    return [f"{one.label} (seeds {' '.join(map(str, one.seeds))}): {reason}" for one in alone]


def comparisons(groups: Sequence[Group], baseline: str, metrics: Sequence[Metric], form: NumberFormat) -> Table | None:
    """Tests of all groups against the baseline in the chosen metrics; None where no two seeds are paired."""
    form = form.of_differences
    tested = [(one, base, metric, _paired(one, base, metric, form)) for metric in metrics for one, base in pairs(groups, baseline)]
    tested = [row for row in tested if row[3].n]
    if not any(row[3].n > 1 for row in tested):
        return None
    found = [row[3] for row in tested]
    gains = [of_interval(test.mean, test.low, test.high, test.n, form.kind, form.form, "+") for test in found]
    columns = [
        texts("strategy", [one.row for one, *_ in tested]),
        texts("baseline", [base.row for _, base, *_ in tested]),
        texts("metric", [heading(metric.heading, groups) for *_, metric, _ in tested]),
        counts("n", [test.n for test in found]),
        Column("difference", tuple(gains)),
        numbers("d", [test.effect for test in found], "+.2f"),
    ]
    for title, found_p in (("t", [test.t_test for test in found]), ("Wilcoxon", [test.wilcoxon for test in found])):
        columns += [p_values(f"p, {title}", found_p), p_values(f"p, {title}, Holm", holm(found_p).tolist())]
    number = sum(np.isfinite(test.wilcoxon) for test in found)
    legend = "\n".join([COMPARISON_LEGEND.format(kind=f"{INTERVALS[form.kind]}{RANGE_AT_TWO}", number=number), *warnings(found)])
    blocks_ = tuple((metric.name, one.setting) for one, _, metric, _ in tested)
    return Table("comparisons", "Tests against the baseline", tuple(columns), legend, blocks_)


def warnings(found: Sequence[Paired]) -> list[str]:
    """Sentences on what so few seeds cannot show."""
    sizes, number = {test.n for test in found}, sum(np.isfinite(test.wilcoxon) for test in found)
    lines = few(sizes, number)
    if len(sizes) == 1 and (n := max(sizes)) >= MIN_PAIRS and (corrected := min(1.0, number * smallest_p(n))) >= 0.05:
        lines.append(
            f"n = {n} is too few for {number} comparisons: after correction the exact Wilcoxon test cannot give p < {corrected:.3g}."
        )
    return lines


def few(pairs: Iterable[float], number: int) -> list[str]:
    """Sentences on what fewer pairs than :data:`~simulations.reports.statistics.MIN_PAIRS` cannot show.

    Args:
        pairs: numbers of pairs; NaN where nothing is compared.
        number: comparisons in one family of tests.
    """
    lines, sizes = [], sorted({int(n) for n in pairs if n > 0})
    for n in (n for n in sizes if n < MIN_PAIRS):
        if n == 1:
            lines.append("n = 1: a single pair has no interval and no test.")
            continue
        corrected = min(1.0, number * smallest_p(n))
        family = f", and after correction for {number} comparisons no p < {corrected:.3g}" if number > 1 and len(sizes) == 1 else ""
        lines.append(
            f"n = {n} is too few: the exact two-sided Wilcoxon test cannot give p < {smallest_p(n):.3g}{family}. "
            f"The t test can, but assumes normal differences, which {n} pairs cannot show."
        )
    return lines


def _paired(one: Group, base: Group, metric: Metric, form: NumberFormat) -> Paired:
    """The statistics of one comparison, in percentage points."""
    return paired(100 * np.subtract(by_seed(one, metric.name), by_seed(base, metric.name)), form.kind)


def p_values(title: str, values: Sequence[float]) -> Column:
    """A column of p-values; small ones as a bound."""
    return Column(title, tuple(Cell(DASH if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001", float(p)) for p in values))
