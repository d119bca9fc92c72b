"""The table of an experiment: differences, tests, intervals and reference numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulations.experiments import published_table, reproduce
from simulations.experiments.definition import Experiment, ReferenceNumbers
from simulations.reports.figures.forest_plot import forest, limits
from simulations.run_folder.reader import FederatedRun
from tests.simulations.experiments.sweeps import by_hand


def fake(seed: int, **figures: float) -> FederatedRun:
    """A run of two rounds whose figures are what they are named."""
    base = {"global_test_accuracy": 0.5, "local_test_accuracy": 0.5, "local_test_accuracy_bottom10": 0.1, "uplink_bytes": 1,
            "downlink_bytes": 1, "local_training_seconds": 1.0, "server_seconds": 0.0, "evaluation_seconds": 0.0}  # fmt: skip
    frame = pd.DataFrame([{"round": number, **base, **figures} for number in (1, 2)])
    return FederatedRun(Path(str(seed)), {"seed": seed}, frame, pd.DataFrame())


def test_differences_from_the_reference_are_tested_and_corrected_for_their_number():
    from scipy.stats import ttest_rel

    experiment = Experiment(
        title="t",
        seeds=[0, 1, 2],
        settings={"r": []},
        strategies={name: [] for name in "ABC"},
        baseline="A",
        metrics=["global_test_accuracy_final"],
    )
    values = {"A": [0.50, 0.52, 0.51], "B": [0.55, 0.571, 0.562], "C": [0.505, 0.531, 0.509]}
    found = {
        ("r", name): {seed: fake(seed, global_test_accuracy=value) for seed, value in enumerate(each)} for name, each in values.items()
    }
    table = published_table.compare(experiment, found).set_index("strategy")
    plain = [ttest_rel(values[name], values["A"]).pvalue for name in "BC"]
    assert table.loc[["B", "C"], "global_test_accuracy_final_minus_baseline_p"].tolist() == pytest.approx(plain)
    holm = [min(1, 2 * plain[0]), max(2 * plain[0], plain[1])]  # B's is the smaller
    assert table.loc[["B", "C"], "global_test_accuracy_final_minus_baseline_p_holm"].tolist() == pytest.approx(holm)
    shown = published_table.table_of(experiment, published_table.compare(experiment, found))
    (column,) = [one for one in shown.columns if one.title.startswith("p, Holm")]
    assert [cell.text for cell in column.cells] == ["-", "< 0.001", f"{holm[1]:.3f}"] and holm[0] < 0.001
    assert "n = 3 is too few" in shown.legend and "2 comparisons no p < 0.5" in shown.legend
    assert "pairs" not in [one.title for one in shown.columns]
    fewer = {cell: runs if cell[1] != "C" else {seed: run for seed, run in runs.items() if seed < 2} for cell, runs in found.items()}
    fewer["r", "A"] = {seed: run for seed, run in found["r", "A"].items() if seed}
    (column,) = [
        one for one in published_table.table_of(experiment, published_table.compare(experiment, fewer)).columns if one.title == "pairs"
    ]
    assert [cell.text for cell in column.cells] == ["0", "2", "1"], "B's three and C's two seeds, of which A lacks the first"
    assert (
        "too few"
        not in published_table.table_of(
            replace(experiment, baseline=None), published_table.compare(replace(experiment, baseline=None), found)
        ).legend
    )


def test_a_table_says_what_its_sweeps_took_and_which_code_made_its_runs(tmp_path):
    times = tmp_path / "times.csv"
    assert reproduce.wall(times) == []
    times.write_text("runs,jobs,seconds\n3,2,90.0\n1,1,30.0\n")
    assert reproduce.wall(times) == ["By the clock 2.0 minutes for 4 runs, 1 and 2 at a time."]
    now = reproduce.current_commit()[0]
    for name, made in (("a", now), ("b", "0123abc"), ("c", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "environment.json").write_text(json.dumps({"commit": made}))
    runs = {name: replace(fake(0), folder=tmp_path / name) for name in "abcd"}
    if now is not None:  # in a checkout
        assert reproduce.commits([runs["a"], runs["c"], runs["d"]]) == []
        assert reproduce.commits(runs.values()) == [f"Made by the code at {', '.join(sorted(['0123abc', now]))}; it is now at {now}."]


def test_within_means_in_our_interval_and_ratios_and_differences_are_paired():
    experiment = Experiment(
        title="t", seeds=[0, 1, 2], settings={"r": []}, strategies={"A": [], "B": []}, baseline="A",
        published=ReferenceNumbers(source="s", metric="global_test_accuracy_final", cells={"r": {"A": [51.0, 1.0], "B": 58.0}}),
    )  # fmt: skip
    found = {
        ("r", name): {seed: fake(seed, global_test_accuracy=value) for seed, value in enumerate(values)}
        for name, values in {"A": (0.50, 0.52, 0.51), "B": (0.55, 0.571, 0.5605)}.items()
    }
    table = published_table.compare(experiment, found).set_index("strategy")
    assert table["paper_within"].tolist() == ["yes", "yes"] and table.loc["B", "paper_difference"] == pytest.approx(56.05 - 58)
    mean, half = by_hand([5.0, 5.1, 5.05])
    assert table.loc["B", "global_test_accuracy_final_minus_baseline_mean"] == pytest.approx(mean)
    assert table.loc["B", "global_test_accuracy_final_minus_baseline_ci95"] == pytest.approx(half)
    assert np.isnan(table.loc["A", "global_test_accuracy_final_minus_baseline_mean"])
    far = replace(experiment, published=replace(experiment.published, cells={"r": {"A": 80.0}}))
    assert published_table.compare(far, found)["paper_within"].tolist() == ["no", ""]
    pair = {cell: {seed: runs[seed] for seed in (0, 1)} for cell, runs in found.items()}
    two = published_table.compare(experiment, pair)
    assert two.filter(like="ci95").isna().all(axis=None) and two["paper_within"].tolist() == ["", ""], "two seeds have no interval"
    times = replace(
        experiment,
        baseline=None,
        ratio_to="A",
        published=ReferenceNumbers(source="s", metric="local_training_seconds_median", cells={"r": {"A": 40.0, "B": 50.0}}),
    )
    found = {
        ("r", "A"): {0: fake(0, local_training_seconds=1.0), 1: fake(1, local_training_seconds=2.0)},
        ("r", "B"): {0: fake(0, local_training_seconds=1.2), 1: fake(1, local_training_seconds=2.6)},
    }
    ratio = published_table.compare(times, found).set_index("strategy")
    assert ratio.loc["B", "local_training_seconds_median_mean"] == pytest.approx(1.25) and ratio.loc["B", "paper_mean"] == 1.25
    assert published_table.compare(times, {})["num_seeds"].tolist() == [0, 0]


def test_the_axis_of_differences_follows_most_and_not_what_lies_far_off(tmp_path):
    table = pd.DataFrame({"setting": "r", "strategy": list("abcdef"), "num_pairs": 5})
    table["global_test_accuracy_final_minus_baseline_mean"] = [np.nan, -1.0, 0.5, 2.0, -40.0, 1.0]
    table["global_test_accuracy_final_minus_baseline_ci95"] = [np.nan, 0.5, 0.5, 0.5, 1.0, 60.0]
    forest(table, "global_test_accuracy_final", "a", tmp_path / "alpha_0.1_differences")
    assert (tmp_path / "alpha_0.1_differences.pdf").exists() and (tmp_path / "alpha_0.1_differences.png").exists()
    low, high = limits(*(table[f"global_test_accuracy_final_minus_baseline_{part}"].dropna() for part in ("mean", "ci95")))
    assert -2 < low < -1.5 and 2.5 < high < 3
