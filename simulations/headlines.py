"""The tables of results: all headlines, strategies by setting, the way to a target, and differences from a baseline."""

from collections.abc import Sequence

import numpy as np

from simulations import times
from simulations.comparisons import pairs
from simulations.groups import Group, place
from simulations.statistics import INTERVALS, TOO_NARROW, interval
from simulations.summaries import COMPARED, HEADLINES, blocks, by_seed, settings
from simulations.tables import Cell, Column, Table, counts, numbers, over_seeds, ranked, texts

INTERVAL = {"t": "± half-width of its 95 % interval", "bootstrap": "[95 % interval]"}
LEGEND = """Accuracy in %: mean over n seeds {interval} ({kind}; none at n = 1).
Test: the balanced test of the global model. Own: on the labels that each client holds. Worst tenth: of the clients, last round.
Last: the last evaluated round. Last ten: mean of the last ten evaluated rounds, or of all where there are fewer.
Top-5 rounds: own labels, the mean of each seed's five best rounds: FedGen's published figure, selected on the test set.
MB: 10^6 bytes, all rounds and clients, mean over seeds."""
TUNED = "Tuned: with a value chosen on held-out training data (simulations.tune); untuned: with that of the configuration. They are ranked apart."


def said(kind: str) -> str:
    """What a mean's interval is."""
    return f"mean over n seeds {INTERVAL[kind]} ({INTERVALS[kind]}; none at n = 1)"


def headlines(groups: Sequence[Group], kind: str) -> Table:
    """A row a group: accuracies and bytes."""
    columns = [texts("strategy", [one.label for one in groups]), counts("n", [len(one.runs) for one in groups])]
    columns += [Column(title, ranked(percents(groups, name, kind), blocks(groups))) for name, title in HEADLINES.items()]
    columns.append(Column("top-5 rounds", tuple(percents(groups, "top5_rounds", kind))))
    for way in ("up", "down"):
        columns.append(numbers(f"MB {way}", [np.mean(by_seed(one, f"bytes_{way}_total")) / 1e6 for one in groups], ".4g"))
    legend = LEGEND.format(interval=INTERVAL[kind], kind=INTERVALS[kind])
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
    totals = [by_seed(one, "simulated_time_total") for one in groups]
    if target is None and np.isnan(np.concatenate(totals)).all():
        return None
    ends = [interval(np.array(values), kind) for values in totals]
    cells = [times.shown(*map(float, three), len(values), kind) for three, values in zip(ends, totals, strict=True)]
    columns = [
        texts("strategy", [one.label for one in groups]),
        counts("n", [len(one.runs) for one in groups]),
        Column("simulated s", tuple(cells)),
    ]
    judged_alike = [(one.block, all(run.metrics["accuracy"].notna().any() for run in one.runs)) for one in groups]  # on one test, or on own labels
    for name, title in times.WAYS.items() if target is not None else ():
        scale = 1e-6 if name == "bytes" else 1.0
        cells = []
        for one in groups:
            reached, spent = (scale * np.array(by_seed(one, f"{name}_{what}", target), float) for what in ("to_target", "spent"))
            cells.append(times.to_target(reached, spent, tuple(map(float, interval(reached, kind))), kind))
        columns.append(Column(f"{title} to {100 * target:g} %", ranked(cells, judged_alike, ".4g", lowest=True)))
    legend = times.LEGEND if target is None else f"{times.LEGEND}\n{times.TARGET_LEGEND.format(percent=100 * target)}"
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
