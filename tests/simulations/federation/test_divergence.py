"""Divergence is a result: recorded with round, client and loss, not repeated, and the last sound state stays on disk."""

import json

import pandas as pd
import pytest
import torch

from fedkd.checkpoint import read_checkpoint
from fedkd.errors import DivergedError
from simulations.config import compose
from simulations.federation import runner
from simulations.federation.runner import run_federation
from strategies.fedavg import FedAvg
from tests.simulations.federation.test_bad_updates import bad_run
from tests.small_runs import SMALL, same_tensors, small_simulation


def only_folder(output):
    (folder,) = (output / "digits").iterdir()
    return folder


def test_a_diverged_run_is_recorded_and_not_repeated(tmp_path, monkeypatch):
    config = bad_run(tmp_path, "diverges")
    with pytest.raises(DivergedError, match=r"1 of 4 clients failed in round 2; client 3 diverged: .*lower the learning rate"):
        run_federation(config)
    folder = only_folder(tmp_path)
    record = json.loads((folder / "diverged.json").read_text())
    assert (record["round"], record["client"], record["loss"]) == (2, 3, "nan")
    monkeypatch.setattr(runner, "run_strategy", lambda *arguments: pytest.fail("the run is repeated"))
    with pytest.raises(DivergedError, match=r"client 3 diverged.*recorded in .*force=true runs it again") as found:
        run_federation(bad_run(tmp_path, "diverges"))
    assert (found.value.round, found.value.client, str(found.value.loss), found.value.folder) == (2, 3, "nan", str(folder))
    assert json.loads((folder / "diverged.json").read_text()) == record


def test_the_last_sound_state_is_kept_where_no_checkpoint_was_due(tmp_path):
    with pytest.raises(DivergedError):
        run_federation(bad_run(tmp_path / "seldom", "diverges", "checkpoint_every=5", "rounds=5"))
    sound = run_federation(bad_run(tmp_path / "sound", "diverges", "rounds=1"))
    kept, expected = read_checkpoint(only_folder(tmp_path / "seldom")), read_checkpoint(sound)
    assert (
        kept.round == 1
        and same_tensors(kept.state, expected.state)
        and same_tensors(dict(kept.client_states), dict(expected.client_states))
    )


@pytest.mark.parametrize("hook", ["aggregate", "server_training"])
def test_a_server_that_diverges_ends_the_run_before_a_checkpoint(hook, tmp_path, monkeypatch):
    original = getattr(FedAvg, hook)

    def diverging(self, server, state, updates, server_round):
        state, metrics = original(self, server, state, updates, server_round)
        factor = float("inf") if server_round == 2 else 1.0
        return {**state, "model": {key: value * factor for key, value in state["model"].items()}}, metrics

    monkeypatch.setattr(FedAvg, hook, diverging)
    with pytest.raises(DivergedError, match=r"^the server diverged in round 2: 'model:.*lower the learning rate$"):
        run_federation(compose([*SMALL, "strategy=fedavg", "progress=false", f"output={tmp_path}"]))
    folder = only_folder(tmp_path)
    assert read_checkpoint(folder).round == 1 and list(pd.read_csv(folder / "metrics.csv")["round"]) == [1]
    assert json.loads((folder / "diverged.json").read_text())["round"] == 2


def test_a_state_may_hold_infinity_where_it_always_has(monkeypatch):
    original = FedAvg.init_server
    monkeypatch.setattr(
        FedAvg, "init_server", lambda self, server: {**original(self, server), "mask": {"m": torch.tensor([-float("inf")])}}
    )
    simulation, text = small_simulation("strategy=fedavg")
    result = simulation.strategy.start(runner.build(simulation.config, "engine")(6, text), num_rounds=1)
    assert 1 in result.train_metrics_clientapp


def test_a_global_model_without_a_finite_loss_is_diverged(tmp_path):
    """One step of a huge learning rate: the weights are finite, and the loss is not."""
    words = ["strategy=fedavg", "local_steps=1", "evaluation.every=1", "optimizer.lr=1e30", "progress=false", f"output={tmp_path}"]
    with pytest.raises(DivergedError, match="diverged"):
        run_federation(compose([*SMALL, *words]))
    record = json.loads((only_folder(tmp_path) / "diverged.json").read_text())
    assert record["round"] == 1 and record["loss"] in ("nan", "inf")
