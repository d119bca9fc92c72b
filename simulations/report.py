"""``python -m simulations.report <folders>``: from run folders, figures and tables. It reads files only, and never trains.

Headlines are the last round and the mean of the last ten evaluated rounds, never the best round: that would select on the test set.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from simulations import details, distill_pages, figures, generator_figures, times
from simulations.groups import Group, comparable, gather, group
from simulations.look import interval
from simulations.runs import ACCURACIES, COSTS, SETTING, STRATEGY, Run, find, is_distillation, natural, read
from simulations.tables import markdown_table

HEADLINES = {
    "accuracy_last": "test, last",
    "accuracy_last_ten": "test, last ten",
    "accuracy_own_labels_last": "own, last",
    "accuracy_own_labels_last_ten": "own, last ten",
    "accuracy_worst_tenth_last": "worst tenth",
}
LEGEND = """Accuracy in %: mean over n seeds ± half-width of its 95 % interval (Student's t over seeds; none at n = 1).
Test: the balanced test of the global model. Own: on the labels that each client holds. Worst tenth: of the clients, last round.
Last: the last evaluated round. Last ten: mean of the last ten evaluated rounds, or of all where there are fewer.
Top-5 rounds: own labels, the mean of each seed's five best rounds: FedGen's published figure, selected on the test set.
MB: 10^6 bytes, all rounds and clients, mean over seeds."""


def summarise(metrics: pd.DataFrame, target: float | None = None) -> dict[str, float]:
    """One run in numbers: accuracies in 0..1 (NaN without a global model), bytes over all rounds, seconds a round as medians.

    ``top5_rounds`` is the optimistic figure of FedGen's paper: the mean of the five best rounds in accuracy on own labels. Of the simulated
    clock it says what :func:`simulations.times.clocked` does.
    """
    own = metrics["accuracy_own_labels"].dropna()
    summary = {"top5_rounds": own.nlargest(5).mean()}
    for column in ACCURACIES:
        evaluated = metrics[column].dropna()
        summary[f"{column}_last"] = evaluated.iloc[-1] if len(evaluated) else np.nan
        summary[f"{column}_last_ten"] = evaluated.tail(10).mean()
    summary |= {f"{cost}_total": metrics[cost].sum() for cost in COSTS if cost.startswith("bytes")}
    timed = metrics[metrics[list(ACCURACIES)].notna().any(axis=1)]
    for cost in (cost for cost in COSTS if cost.startswith("seconds")):
        summary[f"{cost}_median"] = (timed if cost == "seconds_evaluate" else metrics)[cost].median()
    return summary | times.clocked(metrics, target)


def results(groups: Sequence[Group], target: float | None = None) -> pd.DataFrame:
    """One row a group: for every figure of ``summarise`` the mean over seeds, the lowest, the highest, the 95 % half-width.

    With a ``target``, how many seeds reach it too; figures of the way there are NaN unless all do.
    """
    rows = []
    for one in groups:
        runs = pd.DataFrame([summarise(run.metrics, target) for run in one.runs])
        rounds, evaluated, _ = one.runs[0].shape
        row = {"label": one.label, "num_seeds": len(one.runs), "seeds": " ".join(map(str, one.seeds)), "rounds": rounds}
        row["last_evaluated_round"] = evaluated[-1]
        row |= {} if target is None else {"target": target, "num_reached": int(runs["rounds_to_target"].notna().sum())}
        for name, values in runs.items():
            mean, half = interval(values.to_numpy(float))
            low, high = values.min(skipna=False), values.max(skipna=False)
            row |= {f"{name}_mean": mean, f"{name}_lowest": low, f"{name}_highest": high, f"{name}_half_width": half}
        rows.append(row)
    return pd.DataFrame(rows)


def differences(groups: Sequence[Group]) -> pd.DataFrame:
    """Each strategy less FedAvg under the same setting and training, paired by seed; only where both have exactly the same seeds."""
    rows = []
    for one in groups:
        for reference in _references(one, groups):
            pairs = [
                {k: summarise(run.metrics)[k] - summarise(base.metrics)[k] for k in HEADLINES}
                for run, base in zip(one.runs, reference.runs, strict=True)
            ]
            row = {"label": one.label, "reference": reference.label, "num_seeds": len(pairs)}
            for name in HEADLINES:
                mean, half = interval(np.array([pair[name] for pair in pairs], float))
                row |= {f"{name}_mean": mean, f"{name}_half_width": half}
            rows.append(row)
    return pd.DataFrame(rows)


def _references(one: Group, groups: Sequence[Group]) -> list[Group]:
    """The FedAvg groups that differ from ``one`` by the strategy's side of the configuration only, the nearest of them."""

    def common(run: Run) -> frozenset:
        return frozenset(run.values.items()) - run.part(STRATEGY)

    mine = one.runs[0]
    if mine.strategy == "fedavg":
        return []
    found = [other for other in groups if other.runs[0].strategy == "fedavg" and other.seeds == one.seeds]
    found = [other for other in found if common(other.runs[0]) == common(mine)]
    shared = [len(other.runs[0].part(STRATEGY) & mine.part(STRATEGY)) for other in found]
    return [other for other, number in zip(found, shared, strict=True) if number == max(shared)]


def markdown(table: pd.DataFrame, paired: pd.DataFrame, target: float | None = None) -> str:
    """The headline columns as Markdown tables, aligned so that they read as plain text too."""
    columns: dict[str, Sequence[str]] = {"strategy": table["label"], "n": table["num_seeds"].astype(str)}
    columns |= {title: _cells(table, name, "") for name, title in HEADLINES.items()}
    columns["top-5 rounds"] = _cells(table, "top5_rounds", "")
    columns |= {f"MB {way}": (table[f"bytes_{way}_total_mean"] / 1e6).map("{:.4g}".format) for way in ("up", "down")}
    text = f"{markdown_table(columns)}\n\n{LEGEND}\n"
    if target is not None or table["simulated_time_total_mean"].notna().any():
        columns = {"strategy": table["label"], "n": table["num_seeds"].astype(str), **times.columns(table, target)}
        text += f"\n{markdown_table(columns)}\n\n{times.legend(target)}\n"
    if len(paired):
        columns = {"strategy": paired["label"], "less": paired["reference"], "n": paired["num_seeds"].astype(str)}
        columns |= {title: _cells(paired, name, "+") for name, title in HEADLINES.items()}
        text += f"\nDifference in percentage points, paired by seed:\n\n{markdown_table(columns)}\n"
    return text


def by_setting(groups: Sequence[Group], table: pd.DataFrame) -> str:
    """Tables of a row a strategy and a column a setting, where there are several of both; empty where not."""
    settings = list(dict.fromkeys(one.setting for one in groups))
    lines = sorted({one.line for one in groups}, key=lambda line: (not line.startswith("fedavg"), natural(line)))
    if len(settings) < 2 or len(lines) < 2:
        return ""
    text = ""
    for name in ("accuracy_last_ten", "accuracy_own_labels_last_ten"):
        cells = {(one.line, one.setting): cell for one, cell in zip(groups, _cells(table, name, ""), strict=True)}
        columns = {"strategy": lines, **{setting: [cells.get((line, setting), "") for line in lines] for setting in settings}}
        text += f"\n{HEADLINES[name][0].upper()}{HEADLINES[name][1:]}, by setting:\n\n{markdown_table(columns)}\n"
    return text


def _cells(table: pd.DataFrame, name: str, sign: str) -> list[str]:
    """``81.20 ± 0.45`` in percent; no interval for one seed, and a dash where there is nothing (a strategy without a global model)."""
    pairs = 100 * table[[f"{name}_mean", f"{name}_half_width"]].to_numpy(float)
    return ["-" if np.isnan(mean) else f"{mean:{sign}.2f}" + ("" if np.isnan(half) else f" ± {half:.2f}") for mean, half in pairs]


def draw(groups: Sequence[Group], output: Path) -> tuple[list[Path], list[str]]:
    """The figures of each setting, and notes on those that could not be drawn."""
    settings = gather(groups, lambda one: one.runs[0].part(SETTING))
    order = sorted({one.line for one in groups}, key=lambda line: (not line.startswith("fedavg"), natural(line)))
    paths, notes = [], []
    for setting in settings:
        suffix = "_" + re.sub(r"[^\w.]+", "-", setting[0].setting).strip("-") if len(settings) > 1 else ""
        lines = {one.line: [run.metrics for run in one.runs] for one in setting}
        paths += figures.convergence(lines, output / f"convergence{suffix}", order)
        paths += figures.spread({one.line: _finals(one) for one in setting}, output / f"spread{suffix}", order)
        first = min((run for one in setting for run in one.runs), key=lambda run: run.seed)
        try:
            paths += figures.partition(first.counts(), output / f"partition{suffix}")
        except ValueError as error:
            notes.append(f"no figure of the partition of {first.folder}: {error}")
    more, said = generator_figures.draw(settings, order, output)
    return paths + more, notes + said


def _finals(one: Group) -> pd.DataFrame:
    """The mean of the last ten evaluated rounds of each run of a group, by seed."""
    runs = [summarise(run.metrics) for run in one.runs]
    return pd.DataFrame({column: [run[f"{column}_last_ten"] for run in runs] for column in figures.PANELS}, index=list(one.seeds))


def collect(folders: Sequence[Path], until: int | None = None) -> tuple[list[Group], list[str]]:
    """The groups of comparable runs among ``folders``, and a note on each run left out.

    With ``until``, every run counts as if it had ended after that round; runs that are shorter are left out.
    """
    runs, notes = [], []
    for folder in folders:
        try:
            runs.append(read(folder, until))
        except ValueError as error:
            notes.append(f"{folder}: {error}")
    kept, unlike = comparable(runs)
    return group(kept), notes + unlike


def made(folder: Path) -> Path:
    """The folder, which is there now."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 2 where there is nothing to report or the output cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m simulations.report", description="Figures and tables from the folders of runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or parents of them")
    parser.add_argument("--output", type=Path, help="default: the folder 'report' beside the runs")
    parser.add_argument("--until", type=int, metavar="ROUND", help="report the runs as they stood after this round")
    parser.add_argument("--target", type=float, metavar="ACCURACY", help="and when they first reach this accuracy, in 0..1")
    arguments = parser.parse_args(argv)
    if arguments.target is not None and not 0 < arguments.target <= 1:
        return _fail(f"--target must be an accuracy in 0..1 (0.9 is 90 %), got {arguments.target:g}")
    try:
        found = find(arguments.folders)
    except ValueError as error:
        return _fail(str(error))
    distilled = [folder for folder in found if is_distillation(folder)]
    groups, notes = collect([folder for folder in found if folder not in distilled], arguments.until)
    output = arguments.output or Path(os.path.commonpath([folder.absolute().parent for folder in found])) / "report"
    try:
        text, paths, more = distill_pages.write(distilled, made(output)) if distilled else ("", [], [])
        for note in [*notes, *more]:
            print(f"left out: {note}", file=sys.stderr)
        if not groups and not text:
            return _fail("no finished run is left to report; finish one, or give another folder")
        if text:
            print(text, *paths, sep="\n")
        return _write(groups, made(output), arguments.target) if groups else 0
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"--output must be a folder that can be written, got {str(output)!r} ({error}); choose another")


def _write(groups: Sequence[Group], output: Path, target: float | None) -> int:
    """Write all files, print the tables and the paths."""
    table, paired = results(groups, target), differences(groups)
    text = markdown(table, paired, target) + by_setting(groups, table)
    for columns, legend in ((details.server_side(groups), details.SERVER_LEGEND), (details.by_network(groups), details.NETWORK_LEGEND)):
        text += f"\n{markdown_table(columns)}\n\n{legend}\n" if columns else ""
    table.to_csv(output / "results.csv", index=False)
    (output / "results.md").write_text(text, encoding="utf-8")
    paths = [output / "results.csv", output / "results.md", *([output / "differences.csv"] if len(paired) else [])]
    (output / "differences.csv").unlink(missing_ok=True)  # of an earlier report
    if len(paired):
        paired.to_csv(paths[-1], index=False)
    drawn, notes = draw(groups, output)
    print(text, *paths, *drawn, sep="\n")
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    return 0


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
