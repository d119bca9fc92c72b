"""Experiments as one command: what is missing is run, however often it is interrupted, and stands beside what was published."""

import csv
import hashlib
import json
import random
import shutil
import signal
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from omegaconf import OmegaConf
from scipy import stats

from fedkd.config.build import build
from fedkd.config.validation import check_run
from fedkd.errors import ClientFailure
from simulations.config import compose
from simulations.experiments import published_table, reproduce
from simulations.experiments.definition import Experiment, ReferenceNumbers
from simulations.experiments.plan import plan, read_experiment, unfinished
from simulations.experiments.sweep import PATIENCE, one_line
from simulations.progress import ProgressTable
from simulations.reports.figures.forest_plot import forest, limits
from simulations.run_folder.reader import FederatedRun, read_run
from tests.processes import Command, differing, processes, until
from tests.small_runs import ROOT

TINY = ["data=digits", "num_clients=6", "clients_per_round=3", "local_steps=2", "batch_size=16", "partition.min_size=2", "rounds=6"]
SWEEP = ["experiment=fedgen_table1_mnist", "strategies=FedAvg,FedGen", "settings=alpha 1", "seeds=0,1", "jobs=2", "quiet=true", *TINY]
SHIPPED = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml") if "\nreproduce:" in path.read_text(encoding="utf-8"))


def command(where: Path, *words: str) -> int:
    """The command in this process; the runs in others."""
    return reproduce.reproduce(reproduce.parse_arguments([*SWEEP, f"output={where}", *words]))


def folders(where: Path) -> dict[tuple[str, int], Path]:
    """Run folders by strategy and seed."""
    found = {}
    for path in where.glob("fedgen_table1_mnist/*/config.yaml"):
        config = OmegaConf.load(path)
        found[config.choices.strategy, config.seed] = path.parent
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A sweep that was never killed."""
    where = tmp_path_factory.mktemp("whole")
    assert command(where) == 0
    return where


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """The same, to be spoilt."""
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------ what is shipped
@pytest.mark.parametrize("name", SHIPPED)
def test_every_run_of_an_experiment_is_a_valid_configuration(name):
    """Every row with the first column that it has, and every column with the first row; their parts can be built."""
    experiment = read_experiment(name)
    cells = experiment.cells()
    firsts = [
        next(cell for cell in cells if cell[place] == value) for place in (0, 1) for value in dict.fromkeys(cell[place] for cell in cells)
    ]
    words = [(*experiment.settings[row], *experiment.strategies[column]) for row, column in firsts]
    for given in dict.fromkeys(tuple(word for word in one if not word.startswith("tuned_params=")) for one in words):
        config = compose([f"experiment={name}", *given])
        check_run(config)
        for part in ("partition", "shift", "systems", "public_data", "model", "optimizer", "strategy"):
            assert build(config, part) is not None
    if any(word.startswith("tuned_params=") for words in experiment.strategies.values() for word in words):
        assert experiment.tuning.grid


def test_published_numbers_are_those_of_the_paper():
    """A sample of each table, as published."""
    cells = {
        name: read_experiment(f"fedgen_{name}").published.cells
        for name in ("table1_mnist", "table1_emnist", "table1_celeba", "table2", "table3", "table4")
    }
    assert cells["table1_mnist"]["alpha 0.1"]["FedGen"] == [93.03, 0.32] and cells["table1_mnist"]["alpha 0.05"]["FedDistill"] == [
        70.56,
        1.24,
    ]
    assert cells["table1_emnist"]["alpha 1 with 40 steps"]["FedAvg"] == [77.02, 1.09]
    assert cells["table2"]["alpha 0.1"]["noise 32 and hidden 128"] == [72.43, 0.57] and cells["table2"]["alpha 0.1"]["FedAvg"] == [
        66.22,
        2.58,
    ]
    assert cells["table1_celeba"]["10 of 25 clients"]["FedDFusion"] == [89.25, 0.56]
    ratios = [round(cells["table3"]["sequential"][f"FedGen {size}"] / 47.66, 2) for size in (8, 16, 32, 64, 128)]
    assert ratios == [1.20, 1.20, 1.22, 1.24, 1.26] and cells["table4"]["alpha 10"]["FedDistill+"] == 86.89


def test_an_experiment_of_the_user_s_is_read_and_checked(tmp_path):
    """Its yaml is in the user's folder; a wrong key or name is refused."""
    known = r"^experiment must be one that describes a sweep \(.*fedgen_table1_mnist.*\), got 'fedgen_mnist'; did you mean 'fedgen_table"
    with pytest.raises(ValueError, match=known):
        read_experiment("fedgen_mnist")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    fields = {"title": "t", "seeds": [0], "settings": {"a": []}, "strategies": {"b": []}, "metrics": ["global_test_accuracy_final"]}

    def read(**changes: object) -> Experiment:
        text = OmegaConf.to_yaml({"reproduce": {**fields, **changes}})
        (tmp_path / "conf" / "experiment" / "odd.yaml").write_text(f"# @package _global_\n# Odd.\n{text}")
        return read_experiment("odd", [f"searchpath={tmp_path}"])

    assert read().cells() == [("a", "b")]
    for changes, message in (
        ({"seeds": "many"}, r"^reproduce\.seeds of experiment odd: .*got 'many'$"),
        ({"color": 1}, r"^reproduce\.color of experiment odd: "),
        ({"strategies": {"a, b": []}}, "must not contain a comma"),
        ({"metrics": ["loss"]}, "must name its own settings, strategies, metrics and figures, got .'metric loss'"),
        ({"figures": ["pie"]}, "'figure pie'"),
        ({"baseline": "c"}, "'strategy c'"),
        ({"published": {"source": "s", "metric": "best5_rounds", "cells": {"a": {"c": 1.0}}}}, "published number of paper for a, c"),
    ):
        with pytest.raises(ValueError, match=message):
            read(**changes)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["seed=1"], "^seeds must be given in place of seed"), (["jobs=0"], "^jobs must be >= 1"), (["jobs=x"], "^jobs must be whole numbers"),
     (["only=me"], "^only must be plan or table"), (["settings=beta"], "^settings must be of alpha 0.05, alpha 0.1, alpha 1, got 'beta'$")],
)  # fmt: skip
def test_the_command_line_is_checked(words, message):
    with pytest.raises(ValueError, match=message):
        reproduce.parse_arguments(["experiment=fedgen_table1_mnist", *words])


def test_a_selection_must_leave_something_to_compare():
    with pytest.raises(ValueError, match="^strategies must have FedAvg among them, to which all metrics are ratios"):
        reproduce.parse_arguments(["experiment=fedgen_table3", "strategies=FedGen 8"])
    with pytest.raises(ValueError, match="^strategies must be run in one of the settings at least"):
        reproduce.parse_arguments(["experiment=fedgen_public_code", "settings=alpha 1 for 100 rounds", "strategies=FedProx"])
    asked = reproduce.parse_arguments(["experiment=fedgen_ablation", "strategies=FedAvg,FedProx"])
    assert asked.experiment.baseline is None and asked.experiment.figures == []
    assert asked.experiment.note.endswith("FedGen, from which differences are, is not among the strategies.")


def test_a_failure_is_said_in_a_line_that_ends_with_what_went_wrong():
    try:
        raise FloatingPointError("the loss is no longer finite")
    except FloatingPointError:
        told = traceback.format_exc()
    said = one_line(ClientFailure(f"10 of 10 clients failed in round 3; client 4 said:\n{told}"))
    assert "Traceback" not in said and said.startswith("10 of 10 clients failed in round 3") and "said:" in said
    assert said.endswith("FloatingPointError: the loss is no longer finite")
    assert one_line(ValueError("lr must be > 0")) == "lr must be > 0" and one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


# ---------------------------------------------------------------------------------------------------------- the sweep
def test_data_that_are_missing_are_missing_once(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"^data\.root must hold the files of emnist_letters, got .*point data\.root to them"):
        reproduce.reproduce(
            reproduce.parse_arguments(
                ["experiment=fedgen_table1_emnist", "strategies=FedGen", f"data.root={tmp_path}", f"output={tmp_path}"]
            )
        )
    assert capsys.readouterr().out == "15 runs: 0 finished, 0 interrupted, 15 missing\n"
    assert [path.name for path in (tmp_path / "fedgen_table1_emnist").iterdir()] == ["reproduce"], "no run was begun"


def test_what_is_finished_is_not_run_again(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("metrics.csv")}
    assert len(before) == 4 and command(whole) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("4 runs: 4 finished, 0 interrupted, 0 missing\n4 runs") and captured.err == ""
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("metrics.csv")} == before


def test_the_plan_says_what_is_there(copy, capsys):
    there = folders(copy)
    shutil.rmtree(there["fedavg", 0])
    header = there["fedgen", 1] / "checkpoint.json"
    header.write_text(header.read_text().replace('"finished": true', '"finished": false'))
    assert command(copy, "only=plan") == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["missing", "finished", "finished", "interrupted", "4"]
    assert lines[0].endswith("-  alpha 1, FedAvg, seed 0") and str(there["fedgen", 1]) in lines[3]
    assert lines[-1] == "4 runs: 2 finished, 1 interrupted, 1 missing"


def test_a_run_that_fails_takes_no_other_with_it(copy, whole, capsys):
    there = folders(copy)
    (there["fedavg", 0] / "checkpoint.json").unlink()
    (there["fedavg", 0] / "checkpoint.safetensors").write_bytes(b"nothing of the kind")
    shutil.rmtree(there["fedgen", 1])
    assert command(copy) == 1
    captured = capsys.readouterr()
    assert "1 runs done" in captured.out and "4 runs: 3 finished, 1 interrupted, 0 missing" in captured.out
    assert "\nfailed: alpha 1, FedAvg, seed 0: output must hold readable checkpoints, got " in captured.err
    assert "alpha 1, FedAvg, seed 0: FAILED: output must hold" in captured.err
    log = copy / "fedgen_table1_mnist" / "reproduce" / "log" / "alpha_1_FedAvg_seed_0.txt"
    assert "Traceback" in log.read_text()
    again, before = folders(copy)["fedgen", 1], folders(whole)["fedgen", 1]
    assert list(differing(again, before)) == ["config.yaml"], "which names the output"
    table = csv_rows(copy / "fedgen_table1_mnist/reproduce/fedgen_table1_mnist/table.csv")
    assert [(row["strategy"], row["seeds"]) for row in table] == [("FedAvg", "1"), ("FedGen", "0 1")]


def test_a_run_that_diverges_is_named_in_the_table(tmp_path, capsys):
    """A mean of the others alone would be too good."""
    words = ["strategies=FedAvg", "optimizer.lr=1e30", "seeds=0,1"]
    assert command(tmp_path, *words) == 1 and "FAILED" in capsys.readouterr().err
    table = tmp_path / "fedgen_table1_mnist/reproduce/fedgen_table1_mnist/table.md"
    said = "Diverged, hence in none of the means: alpha 1, FedAvg, seed 0; alpha 1, FedAvg, seed 1.\n"
    assert said in table.read_text()
    assert command(tmp_path, *words, "only=table") == 1 and said in table.read_text(), "the log says so later too"


def test_one_sweep_at_a_time(whole):
    lock = FileLock(whole / "fedgen_table1_mnist" / "reproduce" / ".lock")
    with lock, pytest.raises(ValueError, match="^output must be a folder in which no other sweep of this experiment goes on"):
        command(whole)


def test_a_checkpoint_s_header_that_was_lost_is_written_again(copy):
    """Killed between the two files of the last checkpoint: the run is finished, and says so once it is looked at."""
    folder = folders(copy)["fedgen", 0]
    before = (folder / "checkpoint.json").read_bytes()
    (folder / "checkpoint.json").unlink()
    assert command(copy) == 0 and (folder / "checkpoint.json").read_bytes() == before


def killed_and_started_again(sweeping: list[str], where: Path, rows: int) -> list[int]:
    """A sweep of so many rows, in ``where``, killed after three random ones, and then run to its end; after which it was killed."""
    moments = sorted(random.SystemRandom().sample(range(1, rows), 3))

    def done() -> int:
        return sum(len(path.read_text().splitlines()) - 1 for path in where.rglob("metrics.csv") if path.stat().st_size)

    for number, moment in enumerate(moments):
        started = Command(tuple(sweeping), where, module="simulations.reproduce")
        until(lambda moment=moment, one=started: done() >= moment or one.process.poll() is not None, 300, f"row {moment}")
        assert started.process.poll() is None, started.end().err
        started.process.kill() if number == 1 else started.kill(signal.SIGKILL)
        started.end()
        until(lambda started=started: not started.alive(), PATIENCE, "the end of what it has started")
    ended = Command(tuple(sweeping), where, module="simulations.reproduce").end()
    assert ended.code == 0, ended.err
    return moments


def nameless(path: Path, where: Path) -> str:
    """A text without the folder that it was written in."""
    return path.read_text().replace(str(where), "")


def test_killed_at_random_moments_and_started_again(whole, tmp_path):
    """Three times, once the command alone, whose runs end with it; then to the end: the files are those of a sweep never killed."""
    moments = killed_and_started_again([*SWEEP, f"output={tmp_path}"], tmp_path, 22)
    mine, theirs = folders(tmp_path), folders(whole)
    assert mine.keys() == theirs.keys() and len(mine) == 4
    for name, folder in mine.items():
        assert list(differing(folder, theirs[name])) == ["config.yaml"], (name, moments)
        assert nameless(folder / "config.yaml", tmp_path) == nameless(theirs[name] / "config.yaml", whole), (
            "which names the output and nothing else"
        )
    tables = [(where / "fedgen_table1_mnist/reproduce/fedgen_table1_mnist/table.csv").read_bytes() for where in (tmp_path, whole)]
    assert tables[0] == tables[1]


def test_ctrl_c_ends_everything_and_says_how_to_go_on(tmp_path):
    started = Command((*SWEEP, "rounds=500", f"output={tmp_path}"), tmp_path, module="simulations.reproduce")
    until(lambda: any(path.stat().st_size for path in tmp_path.rglob("metrics.csv")), what="the first row")
    started.kill(signal.SIGINT)
    ended = started.end()
    assert ended.code == 130 and ended.err.endswith("interrupted: run the same command to continue from the last checkpoint\n")
    until(lambda: not started.alive(), PATIENCE, "the end of what it has started")
    assert not processes("FEDKD_TEST_MARK=" + started.mark)


# ---------------------------------------------------------------------------------------------------------- the table
def by_hand(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval."""
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def test_the_table_s_numbers_are_those_of_the_folders(whole, capsys):
    assert command(whole, "only=table") == 0
    text = capsys.readouterr().out
    home = whole / "fedgen_table1_mnist" / "reproduce" / "fedgen_table1_mnist"
    assert (home / "table.md").read_text() in text
    in_latex = (home / "table.tex").read_text()
    assert r"\toprule" in in_latex and in_latex.count(r" \\") == 3 and "93.84 $\\pm$ 0.25" in in_latex
    assert f"NOT as the experiment has it: {' '.join(TINY)}.\n" in text
    rows = {row["strategy"]: row for row in csv_rows(home / "table.csv")}
    for column, strategy, paper, code in (("FedAvg", "fedavg", 93.84, 94.6), ("FedGen", "fedgen", 95.52, 97.3)):
        own = []
        for seed in (0, 1):
            own.append([100 * float(row["local_test_accuracy"]) for row in csv_rows(folders(whole)[strategy, seed] / "metrics.csv")])
        mean, half = by_hand([float(np.mean(sorted(values)[-5:])) for values in own])
        assert float(rows[column]["best5_rounds_mean"]) == pytest.approx(mean) and float(
            rows[column]["best5_rounds_ci95"]
        ) == pytest.approx(half)
        assert float(rows[column]["paper_difference"]) == pytest.approx(mean - paper)
        assert rows[column]["paper_within"] == ("yes" if abs(mean - paper) <= half else "no")
        assert f"{mean:.2f} ± {half:.2f}" in text and f"{mean - paper:+.2f}" in text
        last, _ = by_hand([float(np.mean(values)) for values in own])  # fewer than ten rounds: all of them
        assert float(rows[column]["local_test_accuracy_last10_mean"]) == pytest.approx(last)
        assert float(rows[column]["public_code_difference"]) == pytest.approx(last - code)
        runs = [row for row in csv_rows(home / "runs.csv") if row["strategy"] == column]
        assert [(row["seed"], row["run"]) for row in runs] == [(str(seed), folders(whole)[strategy, seed].name) for seed in (0, 1)]
        assert [float(row["best5_rounds"]) for row in runs] == pytest.approx([float(np.mean(sorted(values)[-5:])) for values in own])


def test_one_seed_has_no_interval_and_ours_is_neither_within_nor_not(whole, capsys):
    assert command(whole, "only=table", "seeds=0") == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "FedGen " in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "1" and "±" not in cells[2] and cells[5] == "-"


def test_figures_are_drawn_of_what_is_there(copy, capsys):
    """The experiment of the figure shares the table's runs; alphas of which nothing is there have no figure."""
    words = ["experiment=fedgen_figure", "seeds=0,1", "only=table", "settings=alpha 1,alpha 10", *TINY, f"output={copy}"]
    assert reproduce.reproduce(reproduce.parse_arguments(words)) == 1, "for most of it is missing"
    home = copy / "fedgen_table1_mnist" / "reproduce" / "fedgen_figure"
    drawn = {f"alpha_1_{name}.{suffix}" for name in ("convergence", "labels") for suffix in ("pdf", "png")}
    assert {path.name for path in home.iterdir()} - {"table.md", "table.csv", "table.tex", "runs.csv"} == drawn
    assert all((home / name).stat().st_size > 5000 for name in drawn)
    assert drawn <= {Path(line).name for line in capsys.readouterr().out.splitlines()}


def fake(seed: int, **figures: float) -> FederatedRun:
    """A run of two rounds whose figures are what they are named."""
    base = {"global_test_accuracy": 0.5, "local_test_accuracy": 0.5, "local_test_accuracy_bottom10": 0.1, "uplink_bytes": 1, "downlink_bytes": 1,
            "local_training_seconds": 1.0, "server_seconds": 0.0, "evaluation_seconds": 0.0}  # fmt: skip
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
        title="t", seeds=[0, 1], settings={"r": []}, strategies={"A": [], "B": []}, baseline="A",
        published=ReferenceNumbers(source="s", metric="global_test_accuracy_final", cells={"r": {"A": [51.0, 1.0], "B": 58.0}}),
    )  # fmt: skip
    found = {
        ("r", "A"): {0: fake(0, global_test_accuracy=0.50), 1: fake(1, global_test_accuracy=0.52)},
        ("r", "B"): {0: fake(0, global_test_accuracy=0.55), 1: fake(1, global_test_accuracy=0.571)},
    }
    table = published_table.compare(experiment, found).set_index("strategy")
    assert table["paper_within"].tolist() == ["yes", "yes"] and table.loc["B", "paper_difference"] == pytest.approx(56.05 - 58)
    mean, half = by_hand([5.0, 5.1])
    assert table.loc["B", "global_test_accuracy_final_minus_baseline_mean"] == pytest.approx(mean)
    assert table.loc["B", "global_test_accuracy_final_minus_baseline_ci95"] == pytest.approx(half)
    assert np.isnan(table.loc["A", "global_test_accuracy_final_minus_baseline_mean"])
    far = replace(experiment, published=replace(experiment.published, cells={"r": {"A": 80.0}}))
    assert published_table.compare(far, found)["paper_within"].tolist() == ["no", ""]
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


# --------------------------------------------------------------------------------------------------------- the search
def test_tuned_columns_are_tuned_first_and_their_runs_say_with_what(tmp_path, capsys):
    asked = ["experiment=fedgen_ablation", "strategies=FedAvg,FedAvg tuned", "seeds=0", "jobs=2", "quiet=true", *TINY, f"output={tmp_path}"]
    assert reproduce.reproduce(reproduce.parse_arguments(asked)) == 0
    captured = capsys.readouterr()
    file = tmp_path / "fedgen_ablation_tune" / "tuned.csv"
    rows = csv_rows(file)
    assert [(row["option"], row["value"], row["rounds"]) for row in rows] == [
        ("fedavg", value, "6") for value in ("0.003", "0.01", "0.03", "0.1", "0.3")
    ]
    best = max(rows, key=lambda row: float(row["validation_accuracy"]))
    assert [row for row in rows if row["selected"] == "1"] == [best]
    for row in rows:
        rounds = csv_rows(tmp_path / row["run"] / "metrics.csv")
        seconds = sum(float(each[f"{phase}_seconds"] or 0) for each in rounds for phase in ("local_training", "server", "evaluation"))
        assert (
            int(row["rounds_done"]) == 6 and int(row["client_updates"]) == 18 and float(row["seconds"]) == pytest.approx(seconds, abs=0.01)
        )
    assert "cost: 5 runs, 30 rounds, 90 client updates, " in captured.out
    taken = list(tmp_path.glob("fedgen_ablation/*/tuned.json"))
    (folder,) = [path.parent for path in taken]
    noted = json.loads(taken[0].read_text())
    tried = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    assert noted["selected"] == [row for row in tried if row["selected"] == "1"] and noted["tried"] == 5
    assert noted["sha256"] == hashlib.sha256(json.dumps(tried, sort_keys=True).encode()).hexdigest()
    config = OmegaConf.load(folder / "config.yaml")
    assert config.optimizer.lr == float(best["value"]) and config.tuned_params == str(file) == noted["file"]
    runs, notes = plan(
        "fedgen_ablation",
        replace(
            read_experiment("fedgen_ablation"),
            strategies={"FedAvg tuned": ["strategy=fedavg", "tuned_params=${output}/${name}_tune/tuned.csv"]},
        ),
        [*TINY, f"output={tmp_path}"],
        [0],
    )
    assert not notes and not unfinished(runs)
    assert reproduce.reproduce(reproduce.parse_arguments(asked)) == 0, "nothing is searched twice"
    assert csv_rows(file) == rows
    with pytest.raises(
        ValueError, match=r"^tuned_params must hold for fedavg the search that the experiment describes .*, 7 rounds, .*tuned\.csv"
    ):
        reproduce.reproduce(reproduce.parse_arguments([*asked, "rounds=7"]))


def test_a_tuned_sweep_killed_at_random_moments_makes_the_same_choice_and_the_same_runs(tmp_path):
    """Its trials are resumed too; what was tried, chosen and noted is that of a sweep never killed, its seconds aside."""
    asked = ["experiment=fedgen_ablation", "strategies=FedAvg,FedAvg tuned", "seeds=0", "jobs=2", "quiet=true", *TINY]
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert reproduce.reproduce(reproduce.parse_arguments([*asked, f"output={whole}"])) == 0
    again.mkdir()
    moments = killed_and_started_again([*asked, f"output={again}"], again, 40)
    choices = [pd.read_csv(where / "fedgen_ablation_tune" / "tuned.csv").drop(columns="seconds") for where in (whole, again)]
    pd.testing.assert_frame_equal(*choices)
    for name in ("fedgen_ablation", "fedgen_ablation_tune"):
        found = [sorted(path.parent.relative_to(where) for path in where.glob(f"{name}/*/config.yaml")) for where in (whole, again)]
        assert found[0] == found[1] and len(found[0]) == {"fedgen_ablation": 2, "fedgen_ablation_tune": 5}[name]
        for folder in found[0]:
            odd = list(differing(again / folder, whole / folder))
            assert set(odd) <= {"config.yaml", "tuned.json"}, (folder, moments)
            assert all(nameless(again / folder / one, again) == nameless(whole / folder / one, whole) for one in odd), (folder, moments)


def test_a_choice_that_is_the_configuration_s_own_value_is_noted_in_the_run_that_is_there(tmp_path):
    """FedAvg's column and its tuned one are then one run, which says so; the grid's only value is the shipped one."""
    experiment = read_experiment("fedgen_ablation")
    columns = {name: experiment.strategies[name] for name in ("FedAvg", "FedAvg tuned")}
    experiment = replace(experiment, tuning=replace(experiment.tuning, grid=[0.01]), strategies=columns)
    words = ["experiment=fedgen_ablation", "seeds=0", "quiet=true", *TINY, f"output={tmp_path}"]
    asked = replace(reproduce.parse_arguments(words), experiment=experiment)
    assert reproduce.reproduce(asked) == 0
    (folder,) = [path.parent for path in tmp_path.glob("fedgen_ablation/*/config.yaml")]
    assert OmegaConf.load(folder / "config.yaml").tuned_params is None and json.loads((folder / "tuned.json").read_text())["tried"] == 1
    assert read_run(folder).kinds == ("tuned", "untuned")
    plain, tuned = csv_rows(tmp_path / "fedgen_ablation/reproduce/fedgen_ablation/table.csv")
    assert plain["local_test_accuracy_last10_mean"] == tuned["local_test_accuracy_last10_mean"] != ""


# ------------------------------------------------------------------------------------------------------------ progress
def test_plain_lines_have_round_accuracy_and_time_left(capsys):
    with ProgressTable(quiet=True) as board:
        board.begin("one", 20, 0)
        for number in range(1, 21):
            board.advance("one", {"round": number, "accuracy": 0.5, "local_test_accuracy": 0.25} if number % 2 else {"round": number})
        board.end("one", "done")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and lines[0] == "one: round 2/20 0:00:00 left" and lines[-1] == "one: done"
    with ProgressTable(enabled=False) as board:
        board.begin("one", 1, 0)
        board.advance("one", {"round": 1, "accuracy": 0.5})
    assert capsys.readouterr().err == ""
