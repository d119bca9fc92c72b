"""Runs on data of a user that are no images."""

import pandas as pd
import pytest
import torch

from simulations.config import compose
from simulations.federation.runner import run_federation
from tests.own_data import series, words

TINY = ("engine=local", "num_clients=4", "clients_per_round=2", "local_steps=2", "rounds=2", "progress=false", "partition=iid")


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("strategy", ["fedavg", "fedgen"])
@pytest.mark.parametrize(("data", "model"), [("words", "WordNetwork"), ("series", "SeriesNetwork")])
def test_words_and_series_train(tmp_path, data, model, strategy, together):
    parts = []
    for part, name in (("data", data), ("model", model)):
        parts += [f"~{part}", f"+{part}._target_=tests.own_data.{name}", f"+{part}._partial_=true"]
    words = [*TINY, "allow_targets=[tests]", f"output={tmp_path}", f"strategy={strategy}", f"clients_per_vmap={together}", *parts]
    folder = run_federation(compose(words))
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["train_loss"].notna().all() and metrics["global_test_accuracy"].between(0, 1).all()
    assert folder.parent.name == data


def test_words_stay_whole_numbers():
    _, train, _ = words()
    assert torch.equal(train.images(torch.arange(9)).long(), train.x[:9])


def test_the_first_dimension_of_series_are_its_channels():
    _, train, _ = series()
    expected = (train.x[:9] - torch.tensor([1.0, 2.0, 3.0])[:, None]) / torch.tensor([1.0, 2.0, 4.0])[:, None]
    torch.testing.assert_close(train.images(torch.arange(9)), expected)
    torch.testing.assert_close(train.without_images().normalize(train.x[:9], torch.float32), expected)
