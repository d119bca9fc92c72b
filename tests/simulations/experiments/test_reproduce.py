"""``fedkd reproduce``: missing runs are made, however often the sweep is interrupted, and the table is written."""

import random
import shutil
import signal
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from fedkd.errors import ClientFailure
from fedkd.training.step_counter import StepCount
from simulations.experiments import reproduce
from simulations.experiments.sweep import PATIENCE, one_line
from simulations.progress import ProgressTable
from tests.processes import Command, differing, processes, until
from tests.simulations.experiments.sweeps import SWEEP, TINY, command, csv_rows, folders


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


def test_a_failure_is_said_in_a_line_that_ends_with_what_went_wrong():
    try:
        raise FloatingPointError("the loss is no longer finite")
    except FloatingPointError:
        told = traceback.format_exc()
    said = one_line(ClientFailure(f"10 of 10 clients failed in round 3; client 4 said:\n{told}"))
    assert "Traceback" not in said and said.startswith("10 of 10 clients failed in round 3") and "said:" in said
    assert said.endswith("FloatingPointError: the loss is no longer finite")
    assert one_line(ValueError("lr must be > 0")) == "lr must be > 0" and one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


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
    for name in ("checkpoint", "previous_checkpoint"):
        (there["fedavg", 0] / f"{name}.safetensors").write_bytes(b"nothing of the kind")
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
    assert command(tmp_path, *words, "only=table") == 1 and said in table.read_text(), "the folders say so later too"


def test_one_sweep_at_a_time(whole):
    lock = FileLock(whole / "fedgen_table1_mnist" / "reproduce" / ".lock")
    with lock, pytest.raises(ValueError, match="^output must be a folder in which no other sweep of this experiment is running"):
        command(whole)


def test_a_checkpoint_s_header_that_was_lost_is_written_again(copy):
    """Killed between the two files of the last checkpoint: the run is finished, and says so once it is looked at."""
    folder = folders(copy)["fedgen", 0]
    before = (folder / "checkpoint.json").read_bytes()
    (folder / "checkpoint.json").unlink()
    assert command(copy) == 0 and (folder / "checkpoint.json").read_bytes() == before


def killed_and_started_again(sweeping: list[str], where: Path, rows: int, kills: Sequence[str]) -> list[int]:
    """Kill a sweep after random rows, start it again, and run it to its end.

    Args:
        sweeping: the words of the sweep.
        where: its folder.
        rows: the number of rows that it writes.
        kills: for each kill whether it ends the ``command`` alone, or the whole ``group`` of processes.

    Returns:
        The rows after which it was killed.
    """
    moments = sorted(random.SystemRandom().sample(range(1, rows), len(kills)))

    def done() -> int:
        return sum(len(path.read_text().splitlines()) - 1 for path in where.rglob("metrics.csv") if path.stat().st_size)

    for kind, moment in zip(kills, moments, strict=True):
        started = Command(tuple(sweeping), where, module="simulations.reproduce", forked=True)
        until(lambda moment=moment, one=started: done() >= moment or one.process.poll() is not None, 300, f"row {moment}")
        assert started.process.poll() is None, started.end().err
        started.process.kill() if kind == "command" else started.kill(signal.SIGKILL)
        started.end()
        until(lambda started=started: not started.alive(), PATIENCE, "the end of what it has started")
    ended = Command(tuple(sweeping), where, module="simulations.reproduce", forked=True).end()
    assert ended.code == 0, ended.err
    return moments


def nameless(path: Path, where: Path) -> str:
    """A text without the folder that it was written in."""
    return path.read_text().replace(str(where), "")


@pytest.mark.parametrize("kills", [("group", "command"), pytest.param(("group", "command") * 4, marks=pytest.mark.slow)], ids=len)
def test_killed_at_random_moments_and_started_again(whole, tmp_path, kills):
    """The runs end with the command. After the last start the files are those of a sweep that was never killed."""
    moments = killed_and_started_again([*SWEEP, f"output={tmp_path}"], tmp_path, 22, kills)
    mine, theirs = folders(tmp_path), folders(whole)
    assert mine.keys() == theirs.keys() and len(mine) == 4
    for name, folder in mine.items():
        assert list(differing(folder, theirs[name])) == ["config.yaml"], (name, moments)
        assert nameless(folder / "config.yaml", tmp_path) == nameless(theirs[name] / "config.yaml", whole), (
            "which names the output and nothing else"
        )
    tables = [(where / "fedgen_table1_mnist/reproduce/fedgen_table1_mnist/table.csv").read_bytes() for where in (tmp_path, whole)]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_ctrl_c_ends_everything_and_says_how_to_go_on(tmp_path):
    started = Command((*SWEEP, "rounds=500", f"output={tmp_path}"), tmp_path, module="simulations.reproduce")
    until(lambda: any(path.stat().st_size for path in tmp_path.rglob("metrics.csv")), what="the first row")
    started.kill(signal.SIGINT)
    ended = started.end()
    assert ended.code == 130 and ended.err.endswith("interrupted: run the same command to continue from the last checkpoint\n")
    until(lambda: not started.alive(), PATIENCE, "the end of what it has started")
    assert not processes("FEDKD_TEST_MARK=" + started.mark)


# ---------------------------------------------------------------------------------------------------------- the table
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
        mean = float(np.mean([np.mean(sorted(values)[-5:]) for values in own]))
        assert float(rows[column]["best5_rounds_mean"]) == pytest.approx(mean)
        assert rows[column]["best5_rounds_ci95"] == "" and rows[column]["paper_within"] == "", "two seeds have no interval"
        assert float(rows[column]["paper_difference"]) == pytest.approx(mean - paper)
        assert f" {mean:.2f} " in text and f"{mean:.2f} ±" not in text and f"{mean - paper:+.2f}" in text
        last = float(np.mean([np.mean(values) for values in own]))  # fewer than ten rounds: all of them
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


# ------------------------------------------------------------------------------------------------------------ progress
def test_plain_lines_have_round_accuracy_and_time_left_and_a_quiet_table_prints_results_alone(capsys):
    for quiet in (False, True):
        with ProgressTable(quiet=quiet) as board:
            board.begin("one", 20, 0)
            for number in range(1, 21):
                board.advance("one", {"round": number, "accuracy": 0.5, "local_test_accuracy": 0.25} if number % 2 else {"round": number})
            board.end("one", "done")
        lines = capsys.readouterr().err.splitlines()
        assert lines == ["one: done"] if quiet else len(lines) == 11 and lines[0] == "one: round 2/20 0:00:00 left"
    with ProgressTable(enabled=False) as board:
        board.begin("one", 1, 0)
        board.advance("one", {"round": 1, "accuracy": 0.5})
    assert capsys.readouterr().err == ""


def test_plain_lines_have_the_steps_of_a_server(capsys, monkeypatch):
    """At most one line in ten seconds, and none for a server that is done."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for quiet in (False, True):
        with ProgressTable(quiet=quiet) as board:
            board.begin("one", 3, 0)
            for second in range(1, 31):
                now[0] += 1
                board.server_steps("one", 2, StepCount(10 * second, 300 if second > 15 else 0, second))
        lines = (
            []
            if quiet
            else ["one: round 2/3, server step 100 in this round", "one: round 2/3, server step 200/300, 0:00:10 left in this round"]
        )
        assert capsys.readouterr().err.splitlines() == lines
