"""``fedkd list``: rows, filters, JSON, and removal that never takes the wrong folder."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from filelock import FileLock

from simulations.cli.inspection import age_of
from simulations.cli.main import cli
from simulations.run_folder.listing import setting
from tests.simulations.cli.run_folders import make_run


@pytest.fixture
def outputs(tmp_path, monkeypatch) -> Path:
    """Four runs: two finished, one interrupted, one of another data set's folder."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "outputs/digits/aaaaaaaaaaaa", age=7200, strategy="fedgen", accuracy=0.9)
    make_run(tmp_path / "outputs/digits/bbbbbbbbbbbb", age=60, seed=1)
    make_run(tmp_path / "outputs/digits/cccccccccccc", age=600, done=1, partition={"_target_": "a.IID"})
    make_run(tmp_path / "outputs/mnist/dddddddddddd", age=90000, done=0)
    return tmp_path / "outputs"


def run(*words: str) -> Result:
    """The command."""
    return CliRunner().invoke(cli, ["list", *words])


def hashes(*words: str) -> list[str]:
    """The first letters of the hashes that are listed."""
    result = run("--json", *words)
    assert result.exit_code == 0, result.stderr
    return [row["hash"][0] for row in json.loads(result.stdout)]


def test_the_table_shows_state_accuracy_and_age_the_oldest_first(outputs):
    lines = run().stdout.splitlines()
    assert lines[0].split()[:3] == ["hash", "strategy", "data"] and [line[0] for line in lines[1:]] == ["d", "a", "c", "b"]
    assert lines[2].split() == [
        "aaaaaaaaaaaa",
        "fedgen",
        "digits",
        "dirichlet",
        "alpha=0.1",
        "0",
        "2/2",
        "finished",
        "45.00",
        "90.00",
        "2",
        "h",
    ]
    assert "interrupted" in lines[3] and "1/2" in lines[3] and "0/2" in lines[1] and " - " in lines[1]


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--status", "finished"], "ab"),
        (["--status", "interrupted"], "dc"),
        (["--status", "running"], ""),
        (["--strategy", "fedgen"], "a"),
        (["strategy=fedgen,fedavg", "seed=0"], "dac"),
        (["seed=0,1"], "dacb"),
        (["partition.alpha=0.1"], "dab"),
        (["outputs/digits", "seed=0"], "ac"),
        (["outputs/mnist"], "d"),
        (["outputs/digits/bbbbbbbbbbbb", "outputs/digits"], "acb"),
    ],
)
def test_filters(outputs, words, kept):
    assert "".join(hashes(*words)) == kept


def test_json_holds_plain_numbers(outputs):
    row = json.loads(run("--json", "strategy=fedgen").stdout)[0]
    assert (
        row["local_test_accuracy"] == 0.9
        and row["global_test_accuracy"] == 0.45
        and row["rounds"] == 2
        and 7200 <= row["age_seconds"] < 7300
    )


def test_a_run_whose_folder_is_locked_goes_on(outputs):
    with FileLock(outputs / "digits/cccccccccccc/.lock"):
        assert hashes("--status", "running") == ["c"]
    assert hashes("--status", "running") == []


def test_a_filter_that_no_run_has_names_the_nearest_key(outputs):
    result = run("partition.alhpa=0.1")
    assert result.exit_code == 2 and "did you mean 'partition.alpha'?" in result.stderr


def test_removal_needs_yes(outputs):
    result = run("--strategy", "fedgen", "--remove")
    assert result.exit_code == 0 and result.stdout == "would remove outputs/digits/aaaaaaaaaaaa\n" and "add --yes" in result.stderr
    assert hashes() == ["d", "a", "c", "b"]


def test_removal_takes_the_runs_that_are_listed_and_no_other(outputs):
    result = run("--status", "interrupted", "--remove", "--yes")
    assert result.exit_code == 0 and result.stdout.count("removed ") == 2
    assert hashes() == ["a", "b"] and (outputs / "mnist").is_dir()


@pytest.mark.parametrize("words", [["--remove"], ["--remove", "--yes"], ["--yes"], ["--yes", "seed=0"]])
def test_removal_of_everything_must_be_asked_for(outputs, words):
    assert run(*words).exit_code == 2 and len(hashes()) == 4
    assert run("outputs", "--remove", "--yes").exit_code == 0 and hashes() == []


def test_a_locked_run_stays(outputs):
    with FileLock(outputs / "digits/cccccccccccc/.lock"):
        result = run("outputs", "--remove", "--yes")
    assert result.exit_code == 2 and "kept: outputs/digits/cccccccccccc" in result.stderr and hashes() == ["c"]


@pytest.mark.parametrize("older", ["outer", "inner"])
def test_a_folder_that_is_no_run_s_stays(outputs, older):
    """Neither a folder of notes, nor one that holds runs beside files of a run, nor the target of a link.

    Which of two nested runs is listed first makes no difference.
    """
    (outputs / "notes").mkdir()
    (outputs / "notes" / "config.yaml").write_text("a: 1\n")
    outer = make_run(outputs / "outer")
    inner = make_run(outer / "inner", seed=7)
    for path in {"outer": outer, "inner": inner}[older].iterdir():
        os.utime(path, (1e9, 1e9))
    (outputs / "link").symlink_to(outputs / "digits" / "aaaaaaaaaaaa")
    result = run("outputs", "--remove", "--yes")
    assert result.exit_code == 2 and "kept: outputs/outer: holds other run folders" in result.stderr
    assert (outputs / "notes" / "config.yaml").exists() and outer.is_dir()
    assert not (outputs / "digits" / "aaaaaaaaaaaa").exists(), "as a run of its own, not by the link"


def test_a_damaged_folder_is_listed_and_can_be_removed(outputs):
    broken = outputs / "digits" / "bbbbbbbbbbbb"
    (broken / "config.yaml").write_text("{")
    (broken / "checkpoint.json").write_text("{")
    (broken / "metrics.csv").write_text("round,local_test_accuracy\n1,zero\n")
    assert "b" in hashes()
    assert run(str(broken), "--remove", "--yes").exit_code == 0 and not broken.exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "dirichlet alpha=0.1"),
        ({"partition": {"_target_": "x.IID"}}, "iid"),
        ({"partition": {"_target_": "x.File", "path": "/data/skew.npz"}}, "file skew"),
        ({"shift": {"_target_": "x.Shift"}, "choices": {"partition": "iid", "shift": "rotation"}}, "iid, rotation"),
        ({"evaluation": {"split": "validation"}}, "dirichlet alpha=0.1, validation"),
    ],
)
def test_settings(changes, text):
    config = {"partition": {"_target_": "x.Dirichlet", "alpha": 0.1, "min_size": 2}, **changes}
    assert setting(config) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (200000, "2 d")])
def test_ages(seconds, text):
    assert age_of(seconds) == text
