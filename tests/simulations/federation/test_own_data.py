"""Runs on data of a user that are no images."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from fedkd.errors import ConfigError
from fedkd.types import Examples
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.reports.builder import report_folders
from simulations.reports.options import ReportOptions
from simulations.setup.clients import checked, read_data
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


def test_two_thousand_classes_train_and_are_reported(tmp_path):
    parts = []
    for part, name in (("data", "many_classes"), ("model", "SeriesNetwork")):
        parts += [f"~{part}", f"+{part}._target_=tests.own_data.{name}", f"+{part}._partial_=true"]
    skewed = ("partition=dirichlet", "partition.alpha=0.1", "strategy.generator_steps=2", "rounds=1")
    folder = run_federation(compose([*TINY, *skewed, "allow_targets=[tests]", f"output={tmp_path}", "strategy=fedgen", *parts]))
    assert len(pd.read_csv(folder / "classes.csv")) == 2000 and pd.read_csv(folder / "metrics.csv")["train_loss"].notna().all()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    report = report_folders([folder], ReportOptions(figures=False), output=tmp_path / "report", quiet=True)
    assert (report / "report.html").stat().st_size < 1e6


FAULTS = {
    "rows of several classes": (lambda x, y: (x, torch.nn.functional.one_hot(y)), "one class for each training example.*int64 .200, 4."),
    "values instead of classes": (lambda x, y: (x, y.double()), "one class for each training example.*float64"),
    "labels outside": (lambda x, y: (x, y + 2), r"labels of training examples in 0\.\.3, as Task.num_classes is 4, got .* of 200 outside"),
    "unlabelled examples": (lambda x, y: (x, torch.where(y == 1, -1, y)), r"labels of training examples in 0\.\.3.* such as \[-1\]"),
    "another shape": (lambda x, y: (x[:, :2], y), r"training examples of Task.shape \[3, 50\].*got \[200, 2, 50\]"),
    "fewer examples than labels": (lambda x, y: (x[1:], y), "training examples of .*, one for each of 200 labels, got"),
    "not finite": (
        lambda x, y: (x.index_fill(0, torch.tensor([7]), torch.nan), y),
        "training examples whose values are finite, got",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_examples_that_do_not_fit_the_task_are_refused(fault):
    task, train, _ = series()
    change, message = FAULTS[fault]
    x, y = change(train.x, train.y)
    with pytest.raises(ConfigError, match=f"^data._target_ must return {message}"):
        checked(task, replace(train, x=x, y=y), "training")


def test_a_source_returns_a_task_and_two_sets(monkeypatch):
    monkeypatch.setattr("simulations.setup.clients.build", lambda config, part: lambda: series()[1:])
    with pytest.raises(ConfigError, match="^data._target_ must return a Task, .* got 'Examples, Examples'$"):
        read_data(compose([]))


def test_examples_without_a_digest_are_identified_by_their_content():
    task, train, test = (replace(one, digest="") if isinstance(one, Examples) else one for one in series())
    digests = {checked(task, one, "test").digest for one in (train, test, replace(test, y=test.y.flip(0)))}
    assert len(digests) == 3 and "" not in digests and checked(task, train, "training").digest in digests
    assert checked(task, replace(train, digest="mine"), "training").digest == "mine"


def test_words_stay_whole_numbers():
    _, train, _ = words()
    assert torch.equal(train.images(torch.arange(9)).long(), train.x[:9])


def test_the_first_dimension_of_series_are_its_channels():
    _, train, _ = series()
    expected = (train.x[:9] - torch.tensor([1.0, 2.0, 3.0])[:, None]) / torch.tensor([1.0, 2.0, 4.0])[:, None]
    torch.testing.assert_close(train.images(torch.arange(9)), expected)
    torch.testing.assert_close(train.without_images().normalize(train.x[:9], torch.float32), expected)
