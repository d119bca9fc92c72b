"""Rounds, bytes and simulated time until a target accuracy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from simulations.report import main
from simulations.reports.summary import CLOCK
from tests.processes import ROOT
from tests.simulations.reports import folders
from tests.simulations.reports.folders import half_width, results_of, write_run, write_whole_run
from tests.simulations.reports.table_files import latex_rows


def write_timed_run(folder: Path, times: Sequence[float], clock: bool = True, **options: Any) -> None:
    """A run folder with these simulated times, and a clock that is configured or not."""
    write_run(folder, **options, **({"systems": folders.CLOCK} if clock else {}))
    table = pd.read_csv(folder / "metrics.csv")
    table.assign(simulated_seconds=times).to_csv(folder / "metrics.csv", index=False)


def cells(text: str, strategy: str) -> list[str]:
    """The cells of a strategy in the table of costs, without the number of seeds."""
    lines = text.partition("Cost and rounds to target:")[2].splitlines()
    return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {strategy}")).split("|")[3:-1]]


def test_the_default_values_of_the_clock_are_those_of_the_configuration():
    shipped = OmegaConf.load(ROOT / "conf" / "systems" / "default.yaml")
    assert {key: shipped[key] for key in CLOCK} == CLOCK


def test_a_mean_where_all_seeds_reach_the_target_and_a_lower_bound_where_not_all_do(tmp_path, capsys):
    for seed, accuracy in enumerate(([0.1, 0.5, 0.8], [0.4, 0.2, 0.9], [0.3, 0.3, 0.5])):
        write_timed_run(tmp_path / f"avg{seed}", [10.0, 20.0, 30.0 + seed], seed=seed, accuracy=accuracy)
        other = [0.1, 0.5, 0.4] if seed else [0.5, 0.1, 0.4]
        write_timed_run(tmp_path / f"gen{seed}", [1.0, 2.5, 4.0], strategy="fedgen", seed=seed, accuracy=other)
    assert main([str(tmp_path), "--no-figures"]) == 0
    text = capsys.readouterr().out
    assert cells(text, "FedAvg") == [f"31 ± {half_width([30, 31, 32]):.4g}"] and cells(text, "FedGen") == ["4 ± 0"]
    assert main([str(tmp_path), "--target", "0.5", "--no-figures"]) == 0
    text, table = capsys.readouterr().out, results_of(tmp_path)
    reached = [20.0, 31.0, 32.0], [2, 3, 3]
    assert cells(text, "FedAvg")[1:] == [
        f"2.667 ± {half_width(reached[1]):.4g}",
        f"0.008 ± {half_width([0.006, 0.009, 0.009]):.4g}",
        f"27.67 ± {half_width(reached[0]):.4g}",
    ]
    row = table.loc["FedGen"]
    assert row.num_reached == 3 and row.time_to_target_mean == 2 and row.time_to_target_min == 1 and row.rounds_to_target_max == 2
    assert main([str(tmp_path), "--target", "0.8", "--no-figures"]) == 0
    text, row = capsys.readouterr().out, results_of(tmp_path).loc["FedAvg"]
    assert cells(text, "FedAvg")[1:] == ["> 3 (2 of 3)", "> 0.009 (2 of 3)", "> 31 (2 of 3)"]
    assert cells(text, "FedGen")[1:] == ["> 3 (0 of 3)", "> 0.009 (0 of 3)", "> 4 (0 of 3)"]
    assert row.num_reached == 2 and np.isnan([row.time_to_target_mean, row.time_to_target_min, row.time_to_target_max]).all()
    assert main([str(tmp_path), "--target", "80"]) == 2 and "target must be an accuracy in 0..1" in capsys.readouterr().err


def test_the_target_is_one_of_local_test_accuracy_without_a_global_model_and_in_evaluated_rounds(tmp_path, capsys):
    write_timed_run(tmp_path / "a", [1.0, 2.0, 3.0, 4.0], accuracy=[0.9, 0.4, 0.9, 0.5], every=2, global_model=False)
    assert main([str(tmp_path), "--target", "0.6", "--no-figures"]) == 0
    assert cells(capsys.readouterr().out, "FedAvg") == ["4", "4", "0.012", "4"]


def test_without_a_configured_clock_no_table_and_no_figure_speaks_of_simulated_time(tmp_path, capsys):
    write_timed_run(tmp_path / "a", [1.0, 2.0, 3.0], clock=False, accuracy=[0.1, 0.6, 0.7])
    assert main([str(tmp_path), "--no-figures"]) == 0 and "Cost and rounds" not in capsys.readouterr().out
    assert main([str(tmp_path), "--target", "0.5"]) == 0
    text = capsys.readouterr().out
    assert cells(text, "FedAvg") == ["2", "0.006"] and "imulated s" not in text
    report = tmp_path / "report"
    assert not list(report.glob("*_by_time*")) and set(pd.read_csv(report / "curves.csv")["along"]) == {"rounds", "bytes"}


def test_the_cost_to_the_target_in_all_files(tmp_path):
    for seed in range(4):
        for strategy, gain in (("fedavg", 0.0), ("fedgen", 0.1)):
            write_whole_run(tmp_path / f"{strategy}{seed}", strategy, seed, gain)
    assert main([str(tmp_path), "--target", "0.75", "--no-figures"]) == 0
    rows = latex_rows(tmp_path / "report" / "times.tex")
    assert rows[0][2:] == ["simulated s", "round to 75 %", "MB to 75 %", "simulated s to 75 %"]
    csv, numbers = pd.read_csv(tmp_path / "report" / "times.csv"), set()
    for place, strategy in enumerate(("fedavg", "fedgen")):
        files = [pd.read_csv(tmp_path / f"{strategy}{seed}" / "metrics.csv") for seed in range(4)]
        got = [file[file["global_test_accuracy"] >= 0.75] for file in files]
        ends = [(found if len(found) else file).iloc[0 if len(found) else -1] for found, file in zip(got, files, strict=True)]
        reached = sum(len(found) > 0 for found in got)
        numbers.add(reached)
        for column, values in (
            (3, [end["round"] for end in ends]),
            (4, [0.003 * end["round"] for end in ends]),
            (5, [end["simulated_seconds"] for end in ends]),
        ):
            mean = f"{np.mean(values):.4g}"
            if reached == 4:
                assert rows[1 + place][column] == f"{mean} ± {half_width(values):.4g}"
            else:
                assert rows[1 + place][column] == f"> {mean} ({reached} of 4)"
                assert np.isnan(csv[rows[0][column]][place]) and csv[f"{rows[0][column]}: low"][place] == pytest.approx(np.mean(values))
    assert 4 in numbers and len(numbers) > 1, "the case has both"


def test_costs_are_ranked_among_strategies_that_are_judged_alike(tmp_path):
    """Without a global model the target is one of local test accuracy, which is not comparable."""
    for name, accuracy, global_model in (
        ("fedavg", [0.2, 0.4, 0.7], True),
        ("fedgen", [0.2, 0.7, 0.7], True),
        ("fedprox", [0.2, 0.4, 0.4], True),
        ("local", [0.7, 0.7, 0.7], False),
    ):
        write_run(tmp_path / name, name, accuracy=accuracy, global_model=global_model)
    write_run(tmp_path / "moon", "moon", accuracy=[0.7, 0.7, 0.7])
    assert main([str(tmp_path), "--no-figures", "--target", "0.65"]) == 0
    text = (tmp_path / "report" / "times.tex").read_text()
    assert r"MOON & 1 & \textbf{1}" in text and r"FedGen & 1 & \underline{2}" in text and r"local & 1 & 1" in text
