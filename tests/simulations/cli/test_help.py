"""Help of the command: fast, light, and of one shape."""

import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from simulations.cli.main import COMMANDS, cli
from simulations.reports.metrics import ALIASES
from tests.small_runs import ROOT

HEAVY = ("torch", "flwr", "ray", "hydra", "omegaconf", "matplotlib", "pandas", "numpy")
SCRIPT = """
import sys
from simulations.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(end.code, *sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("words", [("--help",), ("--version",), *((name, "-h") for name in COMMANDS)], ids=" ".join)
def test_help_takes_less_than_two_seconds_and_imports_nothing_heavy(words):
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    took = time.monotonic() - began
    code, *modules = done.stderr.split()
    assert code == "0" and done.stdout
    assert not {name.partition(".")[0] for name in modules} & set(HEAVY)
    assert took < 2, f"{took:.2f} s"


def test_the_help_of_a_report_lists_its_metrics():
    text = " ".join(CliRunner().invoke(cli, ["report", "--help"]).output.split())
    assert all(name in text for name in (*ALIASES, "best5_rounds", "global_test_accuracy_final"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_synopsis_then_an_example_then_options(name):
    text = CliRunner().invoke(cli, [name, "--help"]).output
    places = [text.index(word) for word in (f"Usage: fedkd {name}", "Example", "Options:")]
    assert places == sorted(places)
    example = text[places[1] : places[2]]
    assert f"fedkd {name}" in example or "fedkd completion" in example
    assert "..." not in example, "an example runs as pasted"
    assert max(map(len, text.splitlines())) <= 120


def test_without_a_word_the_command_shows_its_help():
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 0 and all(f"  {name} " in result.output for name in COMMANDS)


def test_python_m_fedkd_is_the_command():
    done = subprocess.run([sys.executable, "-m", "fedkd", "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fedkd ")
