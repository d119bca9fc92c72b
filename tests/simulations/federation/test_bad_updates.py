"""A bad update is a failure of its client: it ends the run, or is dropped and named in clients.csv. It never reaches the aggregation."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from fedkd.errors import ClientFailure, DivergedError
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.run_folder.reader import read_run
from tests.small_runs import SMALL

BAD = {
    "not_finite": ("training", "finite"),
    "loss": ("training", "loss"),
    "diverges": ("training", "loss"),
    "many": ("training", "num-examples"),
    "negative": ("training", "num-examples"),
    "shape": ("training", "shape"),
    "evaluation": ("evaluation", "num-correct"),
}


def bad_run(folder, kind, *more):
    target = "strategy._target_=tests.failing_clients.BadUpdates"
    small = [*SMALL, "num_clients=4", "clients_per_round=4", "local_steps=2", "rounds=2", "evaluation.every=1", "progress=false"]
    return compose([*small, "strategy=fedavg", target, f"+strategy.kind={kind}", f"output={folder}", *more])


@pytest.mark.parametrize("kind", BAD)
def test_a_dropped_update_is_named_and_changes_nothing(kind, tmp_path):
    chunks = "clients_per_vmap=4" if kind == "diverges" else "clients_per_vmap=1"  # one client of a chunk does not take the others with it
    folder = run_federation(bad_run(tmp_path, kind, "on_client_failure=drop", chunks))
    phase, word = BAD[kind]
    rows = pd.read_csv(folder / "clients.csv").set_index(["round", "client_id"])
    assert rows.loc[(2, 3), "failure"].startswith(f"{phase}: ") and word in rows.loc[(2, 3), "failure"]
    assert (
        rows.loc[(2, 3), "trained"] == int(phase == "evaluation")
        and rows.drop((2, 3))["failure"].dropna().index.get_level_values(1).isin([3]).all()
    )
    assert all(torch.isfinite(tensor).all() for tensor in load_file(folder / "checkpoint.safetensors").values())
    assert len(read_run(folder).metrics) == 2, "a report can read the run"


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_update_ends_the_run_and_names_its_client(kind, tmp_path):
    diverges = kind in ("not_finite", "loss", "diverges")
    with pytest.raises(DivergedError if diverges else ClientFailure, match=r"(?s)client 3.*" + BAD[kind][1]) as found:
        run_federation(bad_run(tmp_path, kind))
    (folder,) = (tmp_path / "digits").iterdir()
    assert (folder / "diverged.json").exists() == diverges
    if diverges:
        record = json.loads((folder / "diverged.json").read_text())
        assert (record["round"], record["client"]) == (2, 3) and found.value.folder == str(folder)
        assert record["loss"] == {"loss": "inf", "diverges": "nan"}.get(kind)
