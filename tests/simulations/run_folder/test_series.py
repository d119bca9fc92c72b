"""More rounds: a run goes on from one of fewer rounds, leaves it as it is, and ends like a run that had all rounds from the start."""

import shutil
from pathlib import Path

import pytest

from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.run_folder.reader import read_run
from tests.processes import differing
from tests.small_runs import SMALL


def small(output: Path, *words: str) -> Path:
    """The folder of a small run."""
    return run_federation(compose([*SMALL, "strategy=fedavg", "progress=false", f"output={output}", "evaluation.every=2", *words]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of six rounds."""
    return small(tmp_path_factory.mktemp("whole"), "rounds=6")


@pytest.mark.parametrize(("first", "taken"), [(4, 4), (3, 2)], ids=["evaluated anyway", "evaluated as the last round"])
def test_more_rounds_go_on_from_the_checkpoint_and_both_results_stay(whole, tmp_path, capsys, first, taken):
    short = small(tmp_path, f"rounds={first}")
    before = {path.name: path.read_bytes() for path in short.iterdir()}
    capsys.readouterr()
    longer = small(tmp_path, "rounds=6")
    assert f"going on from round {taken} of the same run with other rounds, {short}\n" in capsys.readouterr().err
    assert longer != short and {path.name: path.read_bytes() for path in short.iterdir()} == before
    assert list(differing(longer, whole)) == ["config.yaml"], "which names the output"
    assert len(read_run(short).metrics) == first and len(read_run(longer).metrics) == 6


@pytest.mark.parametrize("words", [("seed=1",), ("local_steps=3",), ("evaluation.every=1",)])
def test_a_run_of_another_configuration_begins_anew(whole, tmp_path, capsys, words):
    shutil.copytree(whole.parents[1], tmp_path, dirs_exist_ok=True)
    small(tmp_path, "rounds=7", *words)
    assert "going on" not in capsys.readouterr().err


def test_a_forced_run_and_one_with_fewer_rounds_begin_anew(whole, tmp_path, capsys):
    shutil.copytree(whole.parents[1], tmp_path, dirs_exist_ok=True)
    small(tmp_path, "rounds=7", "force=true")
    small(tmp_path, "rounds=2")
    assert "going on" not in capsys.readouterr().err


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, capsys):
    shutil.copytree(whole.parents[1], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "digits" / whole.name / "checkpoint.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    small(tmp_path, "rounds=7")
    assert "going on from round 5 of the same run" in capsys.readouterr().err
