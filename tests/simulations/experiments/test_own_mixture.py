"""Accuracy on the own mixture of labels, against a sum over single examples."""

import numpy as np
import pandas as pd
import pytest
import torch

from simulations.config import compose
from simulations.experiments.own_mixture import main, own_mixture_accuracy
from simulations.federation.runner import run_federation
from simulations.federation.trained_model import load_model
from tests.processes import metrics
from tests.small_runs import SMALL, small_simulation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    words = (*SMALL, "strategy=ditto", "optimizer.lr=0.1", "local_steps=20", "clients_per_round=6", "partition.alpha=0.3")
    return run_federation(compose([*words, "evaluation.every=1", "progress=false", f"output={tmp_path_factory.mktemp('own')}"])), words


def test_each_class_counts_as_often_as_in_training(folder):
    path, words = folder
    simulation, values, weights = small_simulation(*words)[0], [], []
    for number in range(6):
        model, tested = load_model(path, client=number), simulation.client(number, 3, testing=True)
        answers = model(tested.data.images(torch.arange(len(tested.data)))).logits.argmax(1)
        for label in tested.train_data.y.unique():
            if (tested.data.y == label).any():
                values.append(float((answers[tested.data.y == label] == label).double().mean()))
                weights.append(int((tested.train_data.y == label).sum()))
    assert own_mixture_accuracy(path) == pytest.approx(np.average(values, weights=weights), abs=1e-12)
    assert abs(own_mixture_accuracy(path) - float(metrics(path)["local_test_accuracy"].iloc[-1])) > 1e-3, "the clients' labels are uneven"


def test_the_command_prints_a_line_for_each_finished_run(folder, capsys, tmp_path):
    path, _ = folder
    assert main([str(path.parent)]) == 0
    (tmp_path / "table.csv").write_text(capsys.readouterr().out)
    (row,) = pd.read_csv(tmp_path / "table.csv").to_dict("records")
    assert (row["strategy"], row["seed"], row["run"]) == ("ditto", 0, path.name)
    assert row["own_mixture_accuracy"] == pytest.approx(own_mixture_accuracy(path), abs=1e-6)
    assert main([]) == 2 and main([str(tmp_path / "none")]) == 2
