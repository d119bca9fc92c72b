"""Completion: the words, and the script in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from simulations.cli import completion
from simulations.cli.main import cli
from simulations.overrides import options
from tests.simulations.cli.run_folders import make_run
from tests.small_runs import ROOT

TRY = """
fedkd() { "$PYTHON" -m fedkd "$@"; }
eval "$(fedkd completion bash)"
while IFS= read -r line; do
    COMP_LINE=$line COMP_POINT=${#line}
    _fedkd_completion fedkd
    echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture
def where(tmp_path, monkeypatch) -> Path:
    """A folder with two runs and an option of the user's."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "outputs/digits/aaaaaaaaaaaa")
    make_run(tmp_path / "outputs/digits/bbbbbbbbbbbb", seed=1)
    (tmp_path / "mylab/conf/strategy").mkdir(parents=True)
    (tmp_path / "mylab/conf/strategy/fedmine.yaml").write_text("# Mine.\n_target_: mine.Mine\nweight: 1.0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("root", "typed", "incomplete", "found"),
    [
        ("config", [], "strat", ["strategy="]),
        ("config", [], "partition.al", ["partition.alpha="]),
        ("config", ["partition=classes_per_client"], "partition.", ["partition.per_client="]),
        ("config", [], "strategy=fedgen_", ["strategy=fedgen_head", "strategy=fedgen_paper"]),
        ("config", [], "strategy=fedavg,fedpro", ["strategy=fedavg,fedproto", "strategy=fedavg,fedprox"]),
        ("config", ["strategy=fedprox"], "strategy.m", ["strategy.mu="]),
        ("config", ["experiment=fedgen_mnist"], "partition.r", ["partition.ratio="]),
        ("config", [], "compile=", ["compile=true", "compile=false"]),
        ("config", [], "evaluation.sp", ["evaluation.split="]),
        ("config", [], "+strategy.generator.h", ["+strategy.generator.hidden="]),
        ("config", [], "nothing", []),
        ("config", ["searchpath=mylab"], "strategy=fedm", ["strategy=fedmd", "strategy=fedmine"]),
        ("config", ["searchpath=mylab", "strategy=fedmine"], "strategy.", ["strategy.weight="]),
        ("config", ["searchpath=/nonexistent"], "strategy=fedg", []),
        ("distill", [], "teacher=resnet11", ["teacher=resnet110"]),
        ("distill", [], "teacher_run=outputs/d", ["teacher_run=outputs/digits/"]),
        ("distill", [], "teacher_run=outputs/digits/b", ["teacher_run=outputs/digits/bbbbbbbbbbbb"]),
        ("distill", [], "distiller.tem", ["distiller.temperature="]),
        ("distill", ["student=mlp"], "student.", ["student.widths="]),
    ],
)
def test_words(where, root, typed, incomplete, found):
    assert completion.words(root, typed, incomplete) == found


def test_bash_completes_commands_options_values_keys_and_folders(where):
    """The script, evaluated by bash, with bash's own word breaks at ``=``."""
    lines = {
        "fedkd desc": "describe",
        "fedkd describe strateg": "strategy",
        "fedkd describe strategy fedgk": "fedgkd",
        "fedkd list --st": "--status --strategy",
        "fedkd list --status fin": "finished",
        "fedkd run rounds=3 strategy=fedprot": "fedproto",
        "fedkd run strategy=fedavg,fedprot": "fedavg,fedproto",
        "fedkd run partition.alp": "partition.alpha=",
        "fedkd run partition=classes_per_client partition.": "partition.per_client=",
        "fedkd distill teacher_run=outputs/digits/a": "outputs/digits/aaaaaaaaaaaa",
        "fedkd report outputs/digits/b": "outputs/digits/bbbbbbbbbbbb",
        "fedkd export out": "outputs/",
        "fedkd sweep --jobs 2 seed=0,1 tracker=tens": "tensorboard",
        "fedkd bench eng": "engine",
        "fedkd reproduce fedgen_table1_m": "fedgen_table1_mnist",
        "fedkd completion ": "bash zsh fish",
    }
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "--norc", "-c", TRY], cwd=where, env=environment, input="\n".join(lines) + "\n", capture_output=True, text=True, check=True
    )
    assert dict(zip(lines, done.stdout.splitlines())) == lines, done.stderr
    assert done.stderr == ""


def test_values_that_go_on_get_no_space():
    """A space behind ``strategy=`` or ``outputs/`` would have to be removed by hand."""
    script = CliRunner().invoke(cli, ["completion", "bash"]).output
    assert "[=./,]" in script and "compopt -o nospace" in script


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_scripts_are_valid(shell, tmp_path):
    """As far as the shell is there to say so."""
    script = CliRunner().invoke(cli, ["completion", shell]).output
    assert "_FEDKD_COMPLETE" in script and f"{shell}_complete" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_every_strategy_is_completed():
    assert completion.words("config", [], "strategy=") == [f"strategy={name}" for name in options("strategy")]
