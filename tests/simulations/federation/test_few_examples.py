"""Runs in which clients have no training examples, no test examples, one example, or one class."""

import csv

import numpy as np
import pandas as pd
import pytest

from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.reports.builder import report_folders

TINY = (
    "engine=local",
    "num_clients=4",
    "clients_per_round=2",
    "local_steps=2",
    "rounds=2",
    "progress=false",
    "model=mlp",
    "clients_per_vmap=1",
)


def run(tmp_path, train, test, *overrides):
    """The folder of a small run on digits with these indices of each client."""
    arrays = {f"train_{k}": np.asarray(index, int) for k, index in enumerate(train)}
    np.savez(tmp_path / "p.npz", **arrays, **{f"test_{k}": np.asarray(index, int) for k, index in enumerate(test)})
    words = (f"output={tmp_path / 'runs'}", "partition=from_file", f"partition.path={tmp_path / 'p.npz'}")
    return run_federation(compose([*TINY, *words, *overrides]))


def client_rows(folder):
    with open(folder / "clients.csv", newline="") as file:
        return list(csv.DictReader(file))


TRAIN = [range(100), range(100, 200), [], range(200, 300)]
FLOWER = ("~strategy", "+strategy._target_=flwr.serverapp.strategy.FedAvg", "+strategy.fraction_evaluate=0.0")
TEST = [range(20 * k, 20 * k + 20) for k in range(4)]


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=fedavg",),
        ("strategy=fedgen", "strategy.generator_steps=2", "clients_per_round=3", "clients_per_vmap=auto"),
        ("strategy=fedproto", "validation_fraction=0.2", "local_steps=null", "local_epochs=1"),
        ("strategy=fedavg", "public_data=held_out", "shift=label_noise", "systems.client_sampling=proportional"),
    ],
    ids=str,
)
def test_a_client_without_training_examples_is_evaluated_and_never_trains(tmp_path, overrides, capsys):
    folder = run(tmp_path, TRAIN, TEST, *overrides)
    assert "warning: 1 of 4 clients have no training examples and never train: 2" in capsys.readouterr().err
    rows = [row for row in client_rows(folder) if row["client_id"] == "2"]
    assert rows and all((row["num_train_examples"], row["trained"], row["num_test_examples"]) == ("0", "0", "20") for row in rows)
    assert all(0 <= float(row["local_test_accuracy"]) <= 1 for row in rows)
    metrics = pd.read_csv(folder / "metrics.csv")
    assert np.isfinite(metrics["train_loss"]).all()
    if overrides == ("strategy=fedavg",):
        report = report_folders([folder], output=tmp_path / "report", quiet=True)
        assert "Clients without training examples" in (report / "report.html").read_text(encoding="utf-8")


def test_a_strategy_of_flower_trains_the_clients_with_examples_alone(tmp_path, capsys):
    folder = run(tmp_path, TRAIN, TEST, *FLOWER)
    assert "1 of 4 clients have no training examples and never train: 2" in capsys.readouterr().err
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["num_clients_aggregated"].tolist() == [3, 3] and metrics["num_failures"].tolist() == [0, 0]
    assert np.isfinite(metrics["global_test_loss"]).all()


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (
            ("strategy=fedavg", "clients_per_round=4"),
            r"clients_per_round must be at most the number .* \(3 of 4\), got 4",
        ),
        (
            (*FLOWER, "+strategy.min_available_nodes=4"),
            r"strategy.min_available_nodes must be at most the number .* \(3 of 4\), got 4",
        ),
    ],
)
def test_more_clients_than_can_train_are_refused(tmp_path, overrides, rule):
    with pytest.raises(ValueError, match=rule):
        run(tmp_path, TRAIN, TEST, *overrides)


@pytest.mark.parametrize("tested", [1, 0])
def test_means_over_clients_leave_out_those_without_test_examples(tmp_path, tested):
    folder = run(tmp_path, [range(100 * k, 100 * k + 100) for k in range(4)], [range(20)] * tested + [[]] * (4 - tested), "strategy=fedavg")
    metrics = pd.read_csv(folder / "metrics.csv")
    alone = [float(row["local_test_accuracy"]) for row in client_rows(folder) if row["local_test_accuracy"]]
    assert len(alone) == 2 * tested and metrics["global_test_accuracy"].notna().all()
    assert metrics["local_test_accuracy"].dropna().tolist() == alone


ONE = [range(100), [100], range(101, 103), range(200, 300)]


@pytest.mark.parametrize("overrides", [("fedgen",), ("moon",), ("scaffold",), ("fedproto",), ("fedavg", "model=fedgen_cnn")])
def test_a_client_with_one_example_trains(tmp_path, overrides):
    """The maps of fedgen_cnn have several pixels, so that its BatchNorm can take one image."""
    folder = run(tmp_path, ONE, TEST, *(f"strategy={overrides[0]}", *overrides[1:]), "clients_per_round=4")
    assert np.isfinite(pd.read_csv(folder / "metrics.csv")["train_loss"]).all()


def test_a_client_with_one_example_that_batchnorm_cannot_take_is_refused_before_the_run(tmp_path):
    own = ("~model", "+model._target_=tests.own_networks.batch_normalized", "+model._partial_=true", "allow_targets=[tests]")
    with pytest.raises(ValueError, match="partition must leave every client two training examples for BatchNorm .*, got 'client 1 with 1'"):
        run(tmp_path, ONE, TEST, "strategy=fedavg", *own)


ACROSS_CLIENTS = ("fedgen", "feddistill", "fedproto", "fedensemble")
"""Strategies that combine what several clients send to one class each."""


@pytest.mark.parametrize(
    ("strategy", "sampled"),
    [*((name, 2) for name in (*ACROSS_CLIENTS, "feddistill_logits", "fedntd", "moon", "fedftg")), *((name, 1) for name in ACROSS_CLIENTS)],
)
def test_clients_with_one_class_train_without_nan(tmp_path, strategy, sampled):
    words = (
        f"output={tmp_path}",
        "partition=classes_per_client",
        "partition.per_client=1",
        "num_clients=10",
        f"strategy={strategy}",
        f"clients_per_round={sampled}",
    )
    folder = run_federation(compose([*TINY, *words, *(["strategy.iterations=1"] if strategy == "fedftg" else [])]))
    for name in ("metrics.csv", "clients.csv"):
        assert "nan" not in (folder / name).read_text().lower()
    assert np.isfinite(pd.read_csv(folder / "metrics.csv")["train_loss"]).all()
