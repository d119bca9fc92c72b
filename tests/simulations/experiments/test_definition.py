"""Experiment files: every run is valid, published numbers are the paper's, and wrong arguments are refused."""

import pytest
from omegaconf import OmegaConf

from fedkd.config.build import build
from fedkd.config.validation import check_run
from simulations.config import compose
from simulations.experiments import reproduce
from simulations.experiments.definition import Experiment
from simulations.experiments.plan import read_experiment
from tests.small_runs import ROOT

SHIPPED = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml") if "\nreproduce:" in path.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------ what is shipped
@pytest.mark.parametrize("name", SHIPPED)
def test_every_run_of_an_experiment_is_a_valid_configuration(name):
    """As few cells as hold every row and every column; their parts can be built."""
    experiment = read_experiment(name)
    rows, columns, chosen = set(), set(), []
    cells = experiment.cells()
    for together in (True, False):  # first the cells whose row and column are both new
        for row, column in cells:
            is_new = (row not in rows, column not in columns)
            if all(is_new) if together else any(is_new):
                rows, columns, chosen = rows | {row}, columns | {column}, [*chosen, (row, column)]
    assert rows == {row for row, _ in cells} and columns == {column for _, column in cells}
    words = [(*experiment.settings[row], *experiment.strategies[column]) for row, column in chosen]
    for given in dict.fromkeys(tuple(word for word in one if not word.startswith("tuned_params=")) for one in words):
        config = compose([f"experiment={name}", *given])
        check_run(config)
        for part in ("partition", "shift", "systems", "public_data", "model", "optimizer", "strategy"):
            assert build(config, part) is not None
    if any(word.startswith("tuned_params=") for words in experiment.strategies.values() for word in words):
        assert experiment.tuning.grid


def test_published_numbers_are_those_of_the_paper():
    """A sample of each table, as published."""
    cells = {
        name: read_experiment(f"fedgen_{name}").published.cells
        for name in ("table1_mnist", "table1_emnist", "table1_celeba", "table2", "table3", "table4")
    }
    assert cells["table1_mnist"]["alpha 0.1"]["FedGen"] == [93.03, 0.32] and cells["table1_mnist"]["alpha 0.05"]["FedDistill"] == [
        70.56,
        1.24,
    ]
    assert cells["table1_emnist"]["alpha 1 with 40 steps"]["FedAvg"] == [77.02, 1.09]
    assert cells["table2"]["alpha 0.1"]["noise 32 and hidden 128"] == [72.43, 0.57] and cells["table2"]["alpha 0.1"]["FedAvg"] == [
        66.22,
        2.58,
    ]
    assert cells["table1_celeba"]["10 of 25 clients"]["FedDFusion"] == [89.25, 0.56]
    ratios = [round(cells["table3"]["sequential"][f"FedGen {size}"] / 47.66, 2) for size in (8, 16, 32, 64, 128)]
    assert ratios == [1.20, 1.20, 1.22, 1.24, 1.26] and cells["table4"]["alpha 10"]["FedDistill+"] == 86.89


def test_an_experiment_of_the_user_s_is_read_and_checked(tmp_path):
    """Its yaml is in the user's folder; a wrong key or name is refused."""
    known = r"^experiment must be one that describes a sweep \(.*fedgen_table1_mnist.*\), got 'fedgen_mnist'; did you mean 'fedgen_table"
    with pytest.raises(ValueError, match=known):
        read_experiment("fedgen_mnist")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    fields = {"title": "t", "seeds": [0], "settings": {"a": []}, "strategies": {"b": []}, "metrics": ["global_test_accuracy_final"]}

    def read(**changes: object) -> Experiment:
        text = OmegaConf.to_yaml({"reproduce": {**fields, **changes}})
        (tmp_path / "conf" / "experiment" / "odd.yaml").write_text(f"# @package _global_\n# Odd.\n{text}")
        return read_experiment("odd", [f"searchpath={tmp_path}"])

    assert read().cells() == [("a", "b")]
    for changes, message in (
        ({"seeds": "many"}, r"^reproduce\.seeds of experiment odd: .*got 'many'$"),
        ({"color": 1}, r"^reproduce\.color of experiment odd: "),
        ({"strategies": {"a, b": []}}, "must not contain a comma"),
        ({"metrics": ["loss"]}, "must name its own settings, strategies, metrics and figures, got .'metric loss'"),
        ({"figures": ["pie"]}, "'figure pie'"),
        ({"baseline": "c"}, "'strategy c'"),
        ({"published": {"source": "s", "metric": "best5_rounds", "cells": {"a": {"c": 1.0}}}}, "published number of paper for a, c"),
    ):
        with pytest.raises(ValueError, match=message):
            read(**changes)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["seed=1"], "^seeds must be given in place of seed"), (["jobs=0"], "^jobs must be >= 1"), (["jobs=x"], "^jobs must be whole numbers"),
     (["only=me"], "^only must be plan or table"), (["settings=beta"], "^settings must be of alpha 0.05, alpha 0.1, alpha 1, got 'beta'$")],
)  # fmt: skip
def test_the_command_line_is_checked(words, message):
    with pytest.raises(ValueError, match=message):
        reproduce.parse_arguments(["experiment=fedgen_table1_mnist", *words])


def test_a_selection_must_leave_something_to_compare():
    with pytest.raises(ValueError, match="^strategies must have FedAvg among them, to which all metrics are ratios"):
        reproduce.parse_arguments(["experiment=fedgen_table3", "strategies=FedGen 8"])
    with pytest.raises(ValueError, match="^strategies must be run in one of the settings at least"):
        reproduce.parse_arguments(["experiment=fedgen_public_code", "settings=alpha 1 for 100 rounds", "strategies=FedProx"])
    asked = reproduce.parse_arguments(["experiment=fedgen_ablation", "strategies=FedAvg,FedProx"])
    assert asked.experiment.baseline is None and asked.experiment.figures == []
    assert asked.experiment.note.endswith("FedGen, from which differences are, is not among the strategies.")


# ---------------------------------------------------------------------------------------------------------- the sweep
def test_data_that_are_missing_are_missing_once(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"^data\.root must hold the files of emnist_letters, got .*point data\.root to them"):
        reproduce.reproduce(
            reproduce.parse_arguments(
                ["experiment=fedgen_table1_emnist", "strategies=FedGen", f"data.root={tmp_path}", f"output={tmp_path}"]
            )
        )
    assert capsys.readouterr().out == "15 runs: 0 finished, 0 interrupted, 15 missing\n"
    assert [path.name for path in (tmp_path / "fedgen_table1_emnist").iterdir()] == ["reproduce"], "no run was begun"
