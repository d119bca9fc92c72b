"""The table of an experiment: our numbers beside published ones. It is made from run folders alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from simulations.experiments.definition import Experiment, ReferenceNumbers
from simulations.reports.statistics import holm, paired, spread
from simulations.reports.summary import summarize
from simulations.reports.tables.federated import few, p_values
from simulations.reports.tables.latex import latex
from simulations.reports.tables.table import DASH, Cell, Column, Table, counts, csv_text, markdown, of_interval, texts
from simulations.run_folder.metric_names import TABLE_METRICS
from simulations.run_folder.reader import FederatedRun

CellRuns = Mapping[tuple[str, str], Mapping[int, FederatedRun]]
"""Finished runs by setting and strategy, and by seed."""

SeedMetrics = Mapping[int, dict[str, float]]
"""The metrics of one cell by seed."""


def compare(experiment: Experiment, runs: CellRuns) -> pd.DataFrame:
    """One row per cell, accuracies and their differences in percent.

    Columns: the mean of each metric over seeds and the half-width of its 95 % interval (NaN at n = 1); each source's number, ours minus
    theirs, and whether theirs lies in our interval; with a baseline, the difference from it, paired by seed.
    """
    metrics: dict[tuple[str, str], SeedMetrics] = {
        cell: {seed: run_metrics(run) for seed, run in by_seed.items()} for cell, by_seed in runs.items()
    }
    if experiment.ratio_to is not None:
        metrics = {cell: ratios(by_seed, metrics.get((cell[0], experiment.ratio_to), {})) for cell, by_seed in metrics.items()}
    table = pd.DataFrame([_row(experiment, cell, metrics) for cell in experiment.cells()])
    for metric in experiment.shown if experiment.baseline is not None else ():
        difference = f"{metric}_minus_baseline"
        for rows in table.groupby("setting").groups.values():  # one family of tests: all strategies of a setting
            table.loc[rows, f"{difference}_p_holm"] = holm(table.loc[rows, f"{difference}_p"].tolist())
    return table


def run_metrics(run: FederatedRun) -> dict[str, float]:
    """The metrics of a run that tables may show, accuracies in percent."""
    return {name: value * (100 if is_accuracy(name) else 1) for name, value in summarize(run.metrics).items() if name in TABLE_METRICS}


def is_accuracy(metric: str) -> bool:
    """The metric is an accuracy, which tables show in percent."""
    return metric.startswith(("global_test_accuracy", "local_test_accuracy", "best5"))


def ratios(by_seed: SeedMetrics, bases: SeedMetrics) -> dict[int, dict[str, float]]:
    """Metrics divided by those of another strategy, for the seeds that both have."""
    return {seed: {name: one[name] / bases[seed][name] for name in one} for seed, one in by_seed.items() if seed in bases}


def _row(experiment: Experiment, cell: tuple[str, str], metrics: Mapping[tuple[str, str], SeedMetrics]) -> dict[str, object]:
    """The row of one cell."""
    ours = metrics.get(cell, {})
    row: dict[str, object] = {"setting": cell[0], "strategy": cell[1], "num_seeds": len(ours), "seeds": " ".join(map(str, sorted(ours)))}
    intervals: dict[str, tuple[float, float]] = {}
    for metric in experiment.shown:
        mean, half = spread(np.array([ours[seed][metric] for seed in sorted(ours)], float))
        intervals[metric] = float(mean), float(half)
        row |= {f"{metric}_mean": float(mean), f"{metric}_ci95": float(half)}
    for name, source in experiment.sources.items():
        row |= _reference(source, experiment.ratio_to, cell, name, *intervals[source.metric])
    if experiment.baseline is not None:
        base = metrics.get((cell[0], experiment.baseline), {}) if cell[1] != experiment.baseline else {}
        for metric in experiment.shown:
            pairs = [ours[seed][metric] - base[seed][metric] for seed in sorted(ours.keys() & base.keys())]
            test, name = paired(pairs), f"{metric}_minus_baseline"
            row |= {
                f"{name}_mean": test.mean,
                f"{name}_ci95": float(spread(np.array(pairs, float))[1]),
                f"{name}_d": test.effect,
                f"{name}_p": test.t_test,
            }
            row["num_pairs"] = len(pairs)
    return row


def _reference(
    source: ReferenceNumbers, ratio_to: str | None, cell: tuple[str, str], name: str, mean: float, half: float
) -> dict[str, object]:
    """The number of a source for a cell, ours minus theirs, and whether theirs lies in our interval; NaN if the source has no number."""
    name = name.replace(" ", "_")
    numbers = np.atleast_1d(source.cells.get(cell[0], {}).get(cell[1], np.nan)).astype(float)
    if ratio_to is not None:
        numbers = numbers[:1] / np.atleast_1d(source.cells.get(cell[0], {}).get(ratio_to, np.nan))[0]
    theirs = dict(zip({1: ("mean",), 2: ("mean", "spread"), 3: ("mean", "min", "max")}[len(numbers)], numbers))
    difference = mean - theirs["mean"]
    known = not np.isnan(difference) and not np.isnan(half)
    within = ("yes" if abs(difference) <= half else "no") if known else ""
    return {**{f"{name}_{key}": value for key, value in theirs.items()}, f"{name}_difference": difference, f"{name}_within": within}


def table_of(experiment: Experiment, numbers: pd.DataFrame) -> Table:
    """The numbers of :func:`compare` as a table with its legend."""
    settings = list(dict.fromkeys(numbers["setting"]))
    columns = [texts("setting", numbers["setting"].tolist())] if len(settings) > 1 else []
    columns += [texts("strategy", numbers["strategy"].tolist()), counts("n", numbers["num_seeds"].tolist())]
    if experiment.baseline is not None:
        others = numbers[numbers["strategy"] != experiment.baseline]
        if (others["num_pairs"] != others["num_seeds"]).any():  # a seed is missing on one side
            columns.append(counts("pairs", numbers["num_pairs"].tolist()))
    for metric in experiment.shown:
        title, difference = TABLE_METRICS[metric], f"{metric}_minus_baseline"
        columns.append(Column(f"ours, {title}", cells(numbers, f"{metric}_mean", f"{metric}_ci95")))
        for name, source in experiment.sources.items():
            if source.metric == metric:
                columns += source_columns(numbers, name)
        if experiment.baseline is not None:
            minus = cells(numbers, f"{difference}_mean", f"{difference}_ci95", "+")
            columns.append(Column(f"minus {experiment.baseline}, {title}", minus))
            columns.append(p_values(f"p, Holm, {title}", numbers[f"{difference}_p_holm"].tolist()))
    lines = legend(experiment)
    if experiment.baseline is not None:
        tested = numbers[[f"{name}_minus_baseline_p" for name in experiment.shown]].notna().groupby(numbers["setting"]).sum()
        lines += few(numbers["num_pairs"].tolist(), int(tested.to_numpy().max(initial=0)))
    return Table("table", experiment.title, tuple(columns), "\n".join(lines), tuple(numbers["setting"]))


def source_columns(numbers: pd.DataFrame, name: str) -> list[Column]:
    """The numbers of a source, ours minus theirs, and whether they lie in our interval."""
    key = name.replace(" ", "_")
    theirs = cells(numbers, f"{key}_mean", f"{key}_spread")
    if f"{key}_min" in numbers:
        ranges = zip(theirs, numbers[f"{key}_min"], numbers[f"{key}_max"])
        theirs = tuple(one if np.isnan(low) else replace(one, text=f"{one.text} ({low:.2f} to {high:.2f})") for one, low, high in ranges)
    within = texts(f"{name} in our 95 % CI", [text or DASH for text in numbers[f"{key}_within"]])
    return [Column(name, theirs), Column(f"ours - {name}", cells(numbers, f"{key}_difference", "", "+")), within]


def cells(numbers: pd.DataFrame, mean: str, half: str, sign: str = "") -> tuple[Cell, ...]:
    """``81.20 ± 0.45``; the mean alone without an interval; a dash without a number."""
    halves = numbers[half] if half in numbers else [np.nan] * len(numbers)
    return tuple(of_interval(m, m - h, m + h, 0, "t", sign=sign) for m, h in zip(numbers[mean], halves))


def legend(experiment: Experiment) -> list[str]:
    """The lines below the table that explain its columns."""
    lines = ["Ours: mean over n seeds ± half-width of its 95 % interval (Student's t over seeds; none at n < 3); accuracies in %."]
    if "best5_rounds" in experiment.shown:
        best = "local test accuracy, mean of the five best rounds of each seed, selected on the test set, as the paper's numbers are"
        lines.append(f"Best 5 rounds: {best}.")
    if any(name.endswith("last10") for name in experiment.shown):
        lines.append("Last 10: mean of the last 10 evaluated rounds.")
    for name, source in experiment.sources.items():
        lines.append(f"{name[0].upper()}{name[1:]}: {source.source}.{f' {source.note}' if source.note else ''}")
    if experiment.sources:
        lines.append("In our 95 % CI: the other mean lies inside our interval.")
    if experiment.ratio_to is not None:
        lines.append(f"All numbers are ratios to {experiment.ratio_to}'s, by seed; those of others are ratios of their means.")
    if experiment.baseline is not None:
        lines.append(
            f"Minus {experiment.baseline}: paired by seed, ± half-width of the 95 % interval of the mean difference, "
            "which is not corrected; p of the paired t test, by Holm's correction for all comparisons of a metric in a setting."
        )
    return [*lines, *([experiment.note] if experiment.note else [])]


def cost(runs: Sequence[FederatedRun]) -> str:
    """One sentence on what the finished runs have computed."""
    seconds = sum(float(run.metrics[["local_training_seconds", "server_seconds", "evaluation_seconds"]].sum().sum()) for run in runs)
    rounds = sum(len(run.metrics) for run in runs)
    phases = "local training, server and evaluation by the runs' own clocks"
    return f"{len(runs)} runs, {rounds:,} rounds; {phases} {seconds / 60:.1f} minutes in all."


def run_rows(experiment: Experiment, runs: CellRuns) -> pd.DataFrame:
    """One row per run: the metrics whose means the table shows (accuracies in percent, no ratios), and the name of the run folder."""
    rows = [
        {"setting": cell[0], "strategy": cell[1], "seed": seed, "run": run.folder.name, **run_metrics(run)}
        for cell in experiment.cells()
        for seed, run in sorted(runs.get(cell, {}).items())
    ]
    return pd.DataFrame(rows, columns=["setting", "strategy", "seed", "run", *experiment.shown])


def write(experiment: Experiment, runs: CellRuns, folder: Path, notes: Sequence[str] = ()) -> tuple[str, list[Path]]:
    """Write ``table.md``, ``table.csv`` (all numbers), ``table.tex`` and ``runs.csv`` (one row per run) into ``folder``.

    Args:
        experiment: the experiment.
        runs: its finished runs.
        folder: the folder of the files.
        notes: lines below the table.

    Returns:
        The text of ``table.md``, and the paths.
    """
    numbers = compare(experiment, runs)
    table = table_of(experiment, numbers)
    each = {run.folder: run for by_seed in runs.values() for run in by_seed.values()}
    text = "\n".join([markdown(table), cost(list(each.values())), *notes, ""])
    paths = [folder / name for name in ("table.md", "table.csv", "table.tex", "runs.csv")]
    folder.mkdir(parents=True, exist_ok=True)
    paths[0].write_text(text, encoding="utf-8")
    paths[1].write_text(csv_text(numbers), encoding="utf-8")
    paths[2].write_text(latex(replace(table, name=folder.name)), encoding="utf-8")
    paths[3].write_text(csv_text(run_rows(experiment, runs)), encoding="utf-8")
    return text, paths
