"""TensorBoard events: equal to the tables of the run folder, also after a resume, and no effect on other files."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulations.config import compose
from simulations.federation import generator_diagnostics
from simulations.federation.runner import run_federation
from tests.processes import differing, metrics
from tests.simulations.federation.generator_tools import FOUR_ROUNDS, read_table, run_strategy
from tests.small_runs import InterruptedGrid

Scalars = dict[str, list[tuple[int, float]]]
"""Steps and values by tag."""


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    """t-SNE of 60 points is fast."""
    monkeypatch.setattr(generator_diagnostics, "MAX_POINTS", 60)


def read_events(folder: Path) -> Scalars:
    """The scalars that TensorBoard shows."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(scalar.step, scalar.value) for scalar in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected_events(folder: Path) -> Scalars:
    """The values of the tables of the run, in single precision."""
    expected: Scalars = {}
    for prefix, name in (("", "metrics"), ("generator/", "generator")):
        for row in read_table(folder, name).to_dict("records"):
            suffix = f"/class_{int(row['class']):02d}" if "class" in row else ""
            for column, value in row.items():
                if column not in ("round", "class") and not pd.isna(value):
                    expected.setdefault(f"{prefix}{column}{suffix}", []).append((int(row["round"]), float(np.float32(value))))
    return expected


@pytest.mark.parametrize("every", [1, 2])
def test_events_equal_the_tables(tmp_path, every):
    """Also in a resumed run, which has run a round twice."""
    pytest.importorskip("tensorboard")
    options = ("tracker=tensorboard", "generator_diagnostics_every=1", f"checkpoint_every={every}", "evaluation.every=2")
    uninterrupted = run_strategy(tmp_path / "uninterrupted", "fedgen", *options)
    assert read_events(uninterrupted) == expected_events(uninterrupted) and len(expected_events(uninterrupted)) > 60
    with pytest.raises(KeyboardInterrupt):
        run_strategy(tmp_path / "interrupted", "fedgen", *options, make_grid=InterruptedGrid)
    (interrupted,) = (tmp_path / "interrupted" / "digits").iterdir()
    assert [step for step, _ in read_events(interrupted)["train_loss"]] == [1], "events are written during the run"
    resumed = run_strategy(tmp_path / "interrupted", "fedgen", *options)
    assert len(list((resumed / "tensorboard").iterdir())) == 2
    assert read_events(resumed) == expected_events(resumed)
    assert metrics(resumed).equals(metrics(uninterrupted)) and read_table(resumed).equals(read_table(uninterrupted))


def test_tensorboard_changes_no_other_file(tmp_path):
    pytest.importorskip("tensorboard")
    without, with_events = (run_strategy(tmp_path / value, "fedavg", "rounds=2", f"tracker={value}") for value in ("none", "tensorboard"))
    assert without.name == with_events.name and not (without / "tensorboard").exists()
    for path in (with_events / "tensorboard").iterdir():
        path.unlink()
    (with_events / "tensorboard").rmdir()
    assert list(differing(without, with_events)) == ["config.yaml"]


def test_events_of_a_flower_strategy(tmp_path):
    pytest.importorskip("tensorboard")
    strategy = ("~strategy", "+strategy._target_=flwr.serverapp.strategy.FedAdam", "+strategy.fraction_evaluate=0.0")
    folder = run_federation(compose([*FOUR_ROUNDS, *strategy, "tracker=tensorboard", "rounds=2", f"output={tmp_path}"]))
    assert [step for step, _ in read_events(folder)["global_test_accuracy"]] == [1, 2]


def test_a_missing_package_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match=r"tracker.tensorboard.package must be installed .*fedkd\[tensorboard\]"):
        run_strategy(tmp_path, "fedgen", "tracker=tensorboard")
    assert not list(tmp_path.rglob("metrics.csv"))
