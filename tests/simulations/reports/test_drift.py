"""Forgetting, dip and recovery of runs whose data drift, on numbers that can be checked by hand, and their figure."""

import numpy as np
import pandas as pd
import pytest

from simulations.reports.figures.drift import over_time
from simulations.reports.groups import group
from simulations.reports.statistics import interval
from simulations.reports.tables.drift import drift_measures, drift_table, task_matrix, task_measures, tasks_table
from simulations.reports.tables.table import NumberFormat
from simulations.run_folder.reader import FederatedRun
from tests.small_runs import ROOT

CORRECT = {1: [90], 2: [80], 3: [60, 70], 4: [40, 90], 5: [50, 30, 99], 6: [10, 60, 95]}
"""Correct answers of 100 on each task, by round. Each of three tasks has two rounds."""


def run_of(folder, metrics: pd.DataFrame, first_round, seed: int = 0) -> FederatedRun:
    """A finished run with these rows and phases."""
    folder.mkdir()
    np.savez(folder / "phases.npz", first_round=first_round)
    config = {"seed": seed, "strategy": {"_target_": "strategies.fedavg.FedAvg"}, "choices": {"strategy": "fedavg", "drift": "sudden"}}
    return FederatedRun(folder, {**config, "drift": {"_target_": "x.SuddenDrift"}}, metrics, pd.DataFrame())


@pytest.fixture
def incremental(tmp_path) -> FederatedRun:
    """A run of three tasks."""
    seen = [np.mean(values) / 100 for values in CORRECT.values()]
    run = run_of(tmp_path / "run", pd.DataFrame({"round": range(1, 7), "seen_classes_accuracy": seen}), [1, 3, 5])
    rows = [(r, task, 100, value) for r, values in CORRECT.items() for task, value in enumerate(values)]
    pd.DataFrame(rows, columns=["round", "task", "num_test_examples", "num_correct"]).to_csv(run.folder / "tasks.csv", index=False)
    return run


def test_forgetting_and_transfer_by_their_definitions(incremental):
    np.testing.assert_allclose(task_matrix(incremental), [[0.8, np.nan, np.nan], [0.4, 0.9, np.nan], [0.1, 0.6, 0.95]])
    measures = task_measures(incremental)
    assert measures["final"] == pytest.approx((0.1 + 0.6 + 0.95) / 3)
    assert measures["aia"] == pytest.approx((0.8 + 0.65 + 0.55) / 3)
    assert measures["forgetting"] == pytest.approx(((0.8 - 0.1) + (0.9 - 0.6)) / 2) == -measures["transfer"]
    assert measures["new"] == pytest.approx((0.8 + 0.9 + 0.95) / 3)
    table = tasks_table(group([incremental]), NumberFormat())
    assert [cell.text for cell in table.rows[0]][-2:] == ["50.00", "-50.00"] and drift_table(group([incremental]), NumberFormat()) is None


@pytest.mark.parametrize(("last", "recovery"), [(0.795, "5"), (0.7, "> 5 (0 of 1)")])
def test_dip_and_recovery_by_their_definitions(tmp_path, last, recovery):
    local = [0.5, 0.8, 0.8, 0.8, 0.8, 0.8, 0.6, 0.5, 0.6, 0.7, last]
    table = pd.DataFrame(
        {"round": range(1, 12), "local_test_accuracy": local, "prequential_accuracy": [*local[:5], 0.2, *local[6:10], None]}
    )
    run = run_of(tmp_path / "run", table, [1, 7])
    measures = drift_measures(run)
    assert measures["before"] == pytest.approx(0.8) and measures["dip"] == pytest.approx(0.8 - 0.2), "the old models on the new data"
    assert measures["prequential"] == pytest.approx(np.mean([0.5, 0.8, 0.8, 0.8, 0.8, 0.2, 0.6, 0.5, 0.6, 0.7]))
    assert drift_table(group([run]), NumberFormat()).rows[0][-1].text == recovery
    assert tasks_table(group([run]), NumberFormat()) is None


def test_the_figure_has_a_border_before_each_phase_and_the_matrix(incremental):
    curve = pd.DataFrame({name: [80.0, 65.0, 55.0] for name in ("mean", "low", "high", "min", "max")}).assign(x=[2, 4, 6], n=3)
    matrix = 100 * task_matrix(incremental)
    figure = over_time({"FedAvg": curve}, [3, 5], "all tasks", {"FedAvg": 85.0}, {"FedAvg": matrix}, None)
    top, heat_map = figure.axes
    assert [line.get_xdata()[0] for line in top.lines if line.get_linestyle() == ":"] == [2.5, 4.5]
    assert [line.get_ydata()[0] for line in top.lines if line.get_label() == "_bound"] == [85.0] and top.get_ylim()[1] > 85
    assert [text.get_text() for text in heat_map.texts] == ["80", "40", "90", "10", "60", "95"]


def test_the_kept_tables_follow_from_their_rows():
    """Means and half-widths of the section on drift, from one row per run."""
    page = (ROOT / "simulations" / "results" / "README.md").read_text(encoding="utf-8")
    section = page.partition("\n## Drift and classes that arrive as tasks")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")]
    kept = {name: pd.read_csv(ROOT / "simulations" / "results" / name / "seeds.csv") for name in ("class_incremental", "label_drift")}
    checked = 0
    for line in lines:
        if line[0] in ("FedAvg", "FedGen"):
            runs = kept["class_incremental"][kept["class_incremental"]["strategy"] == line[0]]
            tasks, joint = (runs[runs["setting"] == name] for name in ("five tasks", "joint"))
            values = [*(tasks[name] for name in ("final", "aia", "new", "forgetting")), joint["global_final"]]
            shown = line[2:]
        elif line[1] in ("FedAvg", "FedGen"):
            runs = kept["label_drift"][(kept["label_drift"]["setting"] == line[0]) & (kept["label_drift"]["strategy"] == line[1])]
            values, shown = [runs[name] for name in ("prequential", "before", "dip", "global_final")], [*line[3:6], line[7]]
            recovered = np.isfinite(runs["recovery"]).sum()
            assert line[6].endswith(f"({recovered} of {len(runs)})") or recovered == len(runs)
        else:
            continue
        for of, cell in zip(values, shown, strict=True):
            mean, _, high = (float(one) for one in interval(100 * of))
            assert [float(number) for number in cell.split(" ± ")] == pytest.approx([mean, high - mean], abs=0.0051), line
            checked += 1
    assert checked == 2 * 5 + 4 * 4
