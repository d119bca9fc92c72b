"""Published numbers beside ours: the table of an experiment. It reads files only."""

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
from simulations.reports.tables.table import DASH, Cell, Column, Table, counts, markdown, of_interval, texts
from simulations.run_folder.metric_names import TABLE_METRICS
from simulations.run_folder.reader import FederatedRun

Found = Mapping[tuple[str, str], Mapping[int, FederatedRun]]
"""Finished runs by row, column and seed."""


def compare(experiment: Experiment, found: Found) -> pd.DataFrame:
    """A row a cell: of every figure the mean over seeds and the half-width of its 95 % interval (NaN at n = 1), of every source its number,
    ours less it, and whether it lies within our interval; with a ``reference`` the difference from it, paired by seed.

    Accuracies and their differences are in percent.
    """
    values = {cell: {seed: scaled(run) for seed, run in runs.items()} for cell, runs in found.items()}
    if experiment.ratio_to is not None:
        values = {cell: over(runs, values.get((cell[0], experiment.ratio_to), {})) for cell, runs in values.items()}
    found = pd.DataFrame([_row(experiment, cell, values) for cell in experiment.cells()])
    for figure in experiment.shown if experiment.baseline is not None else ():
        less = f"{figure}_minus_baseline"
        for rows in found.groupby("setting").groups.values():  # one family of tests: all columns of a setting
            found.loc[rows, f"{less}_p_holm"] = holm(found.loc[rows, f"{less}_p"])
    return found


def scaled(run: FederatedRun) -> dict[str, float]:
    """A run's figures, accuracies in percent."""
    return {name: value * (100 if is_accuracy(name) else 1) for name, value in summarize(run.metrics).items() if name in TABLE_METRICS}


def is_accuracy(figure: str) -> bool:
    """It is shown in percent."""
    return figure.startswith(("global_test_accuracy", "local_test_accuracy", "best5"))


def over(runs: Mapping[int, dict[str, float]], bases: Mapping[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    """Figures as ratios, of the seeds that both have."""
    return {seed: {name: one[name] / bases[seed][name] for name in one} for seed, one in runs.items() if seed in bases}


def _row(
    experiment: Experiment, cell: tuple[str, str], values: Mapping[tuple[str, str], Mapping[int, dict[str, float]]]
) -> dict[str, object]:
    """One cell."""
    mine = values.get(cell, {})
    row: dict[str, object] = {"setting": cell[0], "strategy": cell[1], "num_seeds": len(mine), "seeds": " ".join(map(str, sorted(mine)))}
    for figure in experiment.shown:
        mean, half = spread(np.array([mine[seed][figure] for seed in sorted(mine)], float))
        row |= {f"{figure}_mean": mean, f"{figure}_ci95": half}
    for name, source in experiment.sources.items():
        row |= against(source, experiment.ratio_to, cell, name, *(row[f"{source.metric}_{part}"] for part in ("mean", "ci95")))
    if experiment.baseline is not None:
        theirs = values.get((cell[0], experiment.baseline), {}) if cell[1] != experiment.baseline else {}
        for figure in experiment.shown:
            pairs = [mine[seed][figure] - theirs[seed][figure] for seed in sorted(mine.keys() & theirs.keys())]
            test, less = paired(pairs), f"{figure}_minus_baseline"
            row |= {
                f"{less}_mean": test.mean,
                f"{less}_ci95": test.high - test.mean,
                f"{less}_d": test.effect,
                f"{less}_p": test.t_test,
            }
            row["num_pairs"] = len(pairs)
    return row


def against(
    source: ReferenceNumbers, ratio_to: str | None, cell: tuple[str, str], name: str, mean: float, half: float
) -> dict[str, object]:
    """One source's number for a cell, and ours less it; nothing where it has none."""
    name = name.replace(" ", "_")
    numbers = np.atleast_1d(source.cells.get(cell[0], {}).get(cell[1], np.nan)).astype(float)
    if ratio_to is not None:
        numbers = numbers[:1] / np.atleast_1d(source.cells.get(cell[0], {}).get(ratio_to, np.nan))[0]
    theirs = dict(zip({1: ("mean",), 2: ("mean", "spread"), 3: ("mean", "min", "max")}[len(numbers)], numbers))
    difference = mean - theirs["mean"]
    known = not np.isnan(difference) and not np.isnan(half)
    return {**{f"{name}_{key}": value for key, value in theirs.items()}, f"{name}_difference": difference,
            f"{name}_within": ("yes" if abs(difference) <= half else "no") if known else ""}  # fmt: skip


def beside(experiment: Experiment, found: pd.DataFrame) -> Table:
    """What :func:`compare` has found as it is shown, and what its columns mean."""
    settings = list(dict.fromkeys(found["setting"]))
    columns = [texts("setting", found["setting"])] if len(settings) > 1 else []
    columns += [texts("strategy", found["strategy"]), counts("n", found["num_seeds"].tolist())]
    if experiment.baseline is not None:
        others = found[found["strategy"] != experiment.baseline]
        if (others["num_pairs"] != others["num_seeds"]).any():  # a seed is missing on one side
            columns.append(counts("pairs", found["num_pairs"].tolist()))
    for figure in experiment.shown:
        columns.append(Column(f"ours, {TABLE_METRICS[figure]}", cells(found, f"{figure}_mean", f"{figure}_ci95")))
        for name, source in experiment.sources.items():
            if source.metric == figure:
                columns += source_columns(found, name)
        if experiment.baseline is not None:
            less = f"{figure}_minus_baseline"
            columns.append(
                Column(f"less {experiment.baseline}, {TABLE_METRICS[figure]}", cells(found, f"{less}_mean", f"{less}_ci95", "+"))
            )
            columns.append(p_values(f"p, Holm, {TABLE_METRICS[figure]}", found[f"{less}_p_holm"]))
    lines = legend(experiment)
    if experiment.baseline is not None:
        tested = found[[f"{name}_minus_baseline_p" for name in experiment.shown]].notna().groupby(found["setting"]).sum()
        lines += few(found["num_pairs"], int(tested.to_numpy().max(initial=0)))
    return Table("table", experiment.title, tuple(columns), "\n".join(lines), tuple(found["setting"]))


def source_columns(found: pd.DataFrame, name: str) -> list[Column]:
    """A source's numbers, ours less them, and whether they lie within our interval."""
    key = name.replace(" ", "_")
    theirs = cells(found, f"{key}_mean", f"{key}_spread")
    if f"{key}_min" in found:
        ranges = zip(theirs, found[f"{key}_min"], found[f"{key}_max"])
        theirs = tuple(one if np.isnan(low) else replace(one, text=f"{one.text} ({low:.2f} to {high:.2f})") for one, low, high in ranges)
    within = texts(f"{name} within", [text or DASH for text in found[f"{key}_within"]])
    return [Column(name, theirs), Column(f"ours less {name}", cells(found, f"{key}_difference", "", "+")), within]


def cells(found: pd.DataFrame, mean: str, half: str, sign: str = "") -> tuple[Cell, ...]:
    """``81.20 ± 0.45``; the mean alone where there is no more, and a dash where there is nothing."""
    halves = found[half] if half in found else [np.nan] * len(found)
    return tuple(of_interval(m, m - h, m + h, 0, "t", sign=sign) for m, h in zip(found[mean], halves))


def legend(experiment: Experiment) -> list[str]:
    """What the table's columns mean."""
    lines = ["Ours: mean over n seeds ± half-width of its 95 % interval (Student's t over seeds; none at n = 1); accuracies in %."]
    lines += [
        "Top-5 rounds: own labels, the mean of the five best rounds of each seed, selected on the test set, as the paper's figure is."
    ] * ("best5_rounds" in experiment.shown)
    lines += ["Last ten: mean of the last ten evaluated rounds."] * any(name.endswith("last_ten") for name in experiment.shown)
    for name, source in experiment.sources.items():
        lines.append(f"{name[0].upper()}{name[1:]}: {source.source}.{f' {source.note}' if source.note else ''}")
    if experiment.sources:
        lines.append("Within: the others' mean lies in our interval.")
    if experiment.ratio_to is not None:
        lines.append(f"All figures are ratios to {experiment.ratio_to}'s, by seed; those of others are ratios of their means.")
    if experiment.baseline is not None:
        lines.append(
            f"Less {experiment.baseline}: paired by seed, ± half-width of the 95 % interval of the mean difference, "
            "which is not corrected; p of the paired t test, by Holm's correction for all comparisons of a figure in a setting."
        )
    return [*lines, *([experiment.note] if experiment.note else [])]


def cost(runs: Sequence[FederatedRun]) -> str:
    """What finished runs have computed."""
    seconds = sum(float(run.metrics[["local_training_seconds", "server_seconds", "evaluation_seconds"]].sum().sum()) for run in runs)
    rounds = sum(len(run.metrics) for run in runs)
    return f"{len(runs)} runs, {rounds:,} rounds; local training, server and evaluation by the runs' own clocks {seconds / 60:.1f} minutes in all."


def by_run(experiment: Experiment, found: Found) -> pd.DataFrame:
    """A row a run: what the table's means are of (accuracies in percent, no ratios), and the name of its folder."""
    rows = [
        {"setting": cell[0], "strategy": cell[1], "seed": seed, "run": run.folder.name, **scaled(run)}
        for cell in experiment.cells()
        for seed, run in sorted(found.get(cell, {}).items())
    ]
    return pd.DataFrame(rows, columns=["setting", "strategy", "seed", "run", *experiment.shown])


def write(experiment: Experiment, found: Found, folder: Path, notes: Sequence[str] = ()) -> tuple[str, list[Path]]:
    """The table as text, with ``notes`` below it, and the files in ``folder``: ``table.md``, ``table.csv`` (all numbers), ``table.tex``, and
    ``runs.csv``, a row a run."""
    numbers = compare(experiment, found)
    table = beside(experiment, numbers)
    each = {run.folder: run for runs in found.values() for run in runs.values()}
    text = "\n".join([markdown(table), cost(list(each.values())), *notes, ""])
    paths = [folder / name for name in ("table.md", "table.csv", "table.tex", "runs.csv")]
    folder.mkdir(parents=True, exist_ok=True)
    paths[0].write_text(text, encoding="utf-8")
    numbers.to_csv(paths[1], index=False)
    paths[2].write_text(latex(replace(table, name=folder.name)), encoding="utf-8")
    by_run(experiment, found).to_csv(paths[3], index=False)
    return text, paths
