"""Tables of numbers: columns, missing values, groups, the split, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch

from fedkd.data.table import ShippedTable, Table
from fedkd.errors import ConfigError
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.reports.builder import report_folders
from simulations.reports.options import ReportOptions

KEYS = {"label_column": "label", "group_column": None, "left_out_columns": (), "missing": "refuse", "test_fraction": 0.25, "split_seed": 0}


def rows(number: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = np.array(["sick", "well"] * (number // 2))
    age = rng.normal(50, 10, number) + 9 * (label == "sick")
    return pd.DataFrame({"age": age, "ward": ["a", "b", "c", "c"] * (number // 4), "constant": 7, "label": label})


def test_columns_are_normalized_by_the_training_rows(tmp_path):
    frame = rows()
    frame.loc[3, "age"] = None
    frame.to_csv(tmp_path / "patients.csv", index=False)
    task, train, test = Table(root=str(tmp_path / "patients.csv"), **{**KEYS, "group_column": "ward", "missing": "mean"})()
    assert (task.name, task.shape, task.input, task.class_names, len(train), len(test)) == (
        "patients",
        (2,),
        "table",
        ("sick", "well"),
        30,
        10,
    )
    x = train.images(torch.arange(30), torch.float64)
    assert x.mean(0).abs().max() < 1e-6 and x[:, 0].std(correction=0).item() == pytest.approx(1, abs=1e-6) and (x[:, 1] == 0).all()
    assert train.group_names == ("a", "b", "c") and train.y.bincount().tolist() == [15, 15]
    again = Table(root=str(tmp_path / "patients.csv"), **{**KEYS, "split_seed": 1, "group_column": "ward", "missing": "mean"})()[1]
    assert again.digest != train.digest


def test_a_test_file_is_the_test_set(tmp_path):
    frame = rows()
    frame[:20].to_csv(tmp_path / "train.csv", index=False)
    frame[20:].to_csv(tmp_path / "test.tsv", index=False, sep="\t")
    _, train, test = Table(root=str(tmp_path), **{**KEYS, "left_out_columns": ["ward"]})()
    assert (len(train), len(test)) == (20, 20) and test.x[0, 0].item() == pytest.approx(frame["age"][20], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "keys", "message"),
    [
        ({}, {}, r"root must hold numbers in .*data.left_out_columns=\[ward\]\), got .* in column ward"),
        (
            {"age": [1.0] * 39 + ["high"]},
            {"left_out_columns": ["ward"]},
            r"root must hold numbers .*columns=\[age\]\), got .*'high' in column age",
        ),
        ({"age": [None] * 40}, {"left_out_columns": ["ward"], "missing": "mean"}, "left_out_columns must hold .* got 'age'"),
        (
            {"age": [1.0] * 39 + [None]},
            {"left_out_columns": ["ward"]},
            "missing must be mean .*data.left_out_columns=.age., got 'refuse, with 1 missing value in age'",
        ),
        ({}, {"label_column": "diagnosis"}, "label_column must be one of the columns of .*: age, ward, constant, label, got 'diagnosis'"),
        ({"label": [None] + ["a"] * 39}, {"left_out_columns": ["ward"]}, "label_column must hold a label in every row"),
        ({}, {"left_out_columns": ["word"]}, "left_out_columns must be columns of .* got 'word'"),
        ({}, {"test_fraction": 1}, r"test_fraction must be in 0\.\.1"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, changes, keys, message):
    rows().assign(**changes).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ConfigError, match=message):
        Table(root=str(tmp_path / "a.csv"), **{**KEYS, **keys})()


def test_a_shipped_table_is_that_of_scikit_learn_and_trains(tmp_path):
    from sklearn.datasets import load_breast_cancer, load_wine

    for name, load in (("breast_cancer", load_breast_cancer), ("wine", load_wine)):
        task, train, test = ShippedTable(name=name, test_fraction=0.2, split_seed=0)()
        bunch = load()
        assert task.class_names == tuple(bunch.target_names) and len(train) + len(test) == len(bunch.target)
        assert np.sort(np.concatenate([train.x, test.x]), axis=0) == pytest.approx(np.sort(bunch.data, axis=0), rel=1e-6)
    small = ("num_clients=4", "clients_per_round=4", "rounds=6", "local_steps=20", "evaluation.every=6", "progress=false", "engine=local")
    folder = run_federation(
        compose(["data=breast_cancer", "model=mlp", "strategy=fedavg", "partition.alpha=1.0", f"output={tmp_path}", *small])
    )
    last = pd.read_csv(folder / "metrics.csv").iloc[-1]
    report = report_folders([folder], ReportOptions(figures=False), output=tmp_path / "report", quiet=True)
    assert pd.read_csv(report / "headlines.csv")["global macro-F1, final"].notna().all()
    assert last["global_test_accuracy"] > 0.9 and 0.85 < last["global_test_macro_f1"] <= 1
