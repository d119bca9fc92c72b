"""A sample of clients for the local evaluation: equal for all strategies and engines, and equal to all clients where it has all."""

import pandas as pd
import pytest

from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.run_folder.reader import read_run
from simulations.setup.simulation import build_simulation
from tests.small_runs import SMALL, InterruptedGrid, small_simulation

EVALUATED = ("evaluation.every=1", "progress=false", "rounds=4")


def run(output, *words, make_grid=None):
    """The folder of a small run."""
    return run_federation(compose([*SMALL, *EVALUATED, f"output={output}", *words]), make_grid)


def clients_by_round(folder) -> list[list[int]]:
    """The clients that were tested in each round."""
    rows = pd.read_csv(folder / "clients.csv")
    return [sorted(one["client_id"]) for _, one in rows[rows["local_test_accuracy"].notna()].groupby("round")]


def results(folder) -> pd.DataFrame:
    """The rows of metrics.csv without timing columns."""
    table = pd.read_csv(folder / "metrics.csv")
    return table[[name for name in table if not name.endswith("_seconds")]]


def test_a_sample_of_all_clients_gives_the_bits_of_all(tmp_path):
    all_clients, sample = run(tmp_path), run(tmp_path, "evaluation.clients=6")
    assert all_clients != sample, "another setting has another hash"
    for name in ("clients.csv", "partition.npz"):
        assert (all_clients / name).read_bytes() == (sample / name).read_bytes()
    assert results(all_clients).equals(results(sample))


def test_the_sample_is_new_in_each_round_and_the_same_for_all_strategies(tmp_path):
    every = run(tmp_path)
    sampled = {name: run(tmp_path, f"strategy={name}", "evaluation.clients=2") for name in ("fedavg", "fedgen", "fedensemble")}
    drawn = {name: clients_by_round(folder) for name, folder in sampled.items()}
    assert drawn["fedavg"] == drawn["fedgen"] == drawn["fedensemble"] and [len(one) for one in drawn["fedavg"]] == [2] * 4
    assert len({tuple(one) for one in drawn["fedavg"]}) > 1
    whole, part = (pd.read_csv(folder / "clients.csv").set_index(["round", "client_id"]) for folder in (every, sampled["fedgen"]))
    accuracy = part["local_test_accuracy"].dropna()
    assert accuracy.equals(whole["local_test_accuracy"].loc[accuracy.index]), "a sample does not change what is measured of its clients"
    assert read_run(sampled["fedavg"]).clients["round"].nunique() == 4


def test_a_resumed_run_draws_the_same_clients(tmp_path):
    words = ("strategy=fedavg", "evaluation.clients=2")
    whole = run(tmp_path / "whole", *words)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", *words, make_grid=InterruptedGrid)
    resumed = run(tmp_path / "resumed", *words)
    assert (whole / "clients.csv").read_bytes() == (resumed / "clients.csv").read_bytes() and results(whole).equals(results(resumed))


def test_clients_without_test_examples_are_not_drawn():
    simulation, _ = small_simulation("evaluation.clients=3")
    empty = simulation.client_data.local_test[0].subset([])
    local_test = [empty if client in (1, 4) else one for client, one in enumerate(simulation.client_data.local_test)]
    object.__setattr__(simulation.client_data, "local_test", local_test)
    drawn = [simulation.evaluated_clients(number) for number in range(1, 40)]
    build_simulation.cache_clear()
    assert {client for one in drawn for client in one} == {0, 2, 3, 5} and all(len(set(one)) == 3 for one in drawn)
