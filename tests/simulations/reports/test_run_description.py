"""What a report says first: data, model, clients, training and commit of the runs."""

import json

import numpy as np
import pytest

from simulations.reports.builder import collect
from simulations.reports.run_description import commit, describe_federated, varying
from simulations.reports.tables.clients import clients
from simulations.reports.tables.federated import headlines
from simulations.reports.tables.table import NumberFormat
from simulations.run_folder.reader import find_run_folders
from tests.simulations.reports.folders import write_run, write_whole_run


def test_facts_on_runs_and_the_values_in_which_they_differ(tmp_path):
    for seed, rate in enumerate((0.1, 0.01)):
        options = {"optimizer": {"lr": rate, "momentum": 0.9}, "clients_per_round": 1, "local_steps": None, "local_epochs": 2}
        folder = write_run(tmp_path / str(seed), seed=seed, **options)
        (folder / "environment.json").write_text(json.dumps({"commit": "0123456789abcdef", "uncommitted_changes": bool(seed)}))
    groups, _ = collect(find_run_folders([tmp_path]))
    assert describe_federated([run for one in groups for run in one.runs]) == {
        "Data": "digits",
        "Model": "mlp",
        "Clients": "2, of which 1 per round",
        "Partition": "dirichlet alpha=0.1",
        "Rounds": "2",
        "Local training": "2 epochs per round",
        "Batch size": "32",
        "Optimizer": "varies: sgd, learning rate 0.01; sgd, learning rate 0.1",
        "Commit": "varies: 0123456789ab; 0123456789ab with uncommitted changes",
        "Code": "unknown for 2 of 2 runs",
    }


def test_classes_are_listed_by_name_and_clients_without_examples_are_counted(tmp_path):
    folders = [write_run(tmp_path / str(seed), seed=seed) for seed in range(2)]
    for folder in folders:
        (folder / "classes.csv").write_text('class,name\n0,cat\n1,"dog, big"\n2,eel\n')
        np.savez(folder / "partition.npz", counts=np.array([[5, 0, 3], [0, 0, 0]]))
    groups, _ = collect(find_run_folders([tmp_path]))
    facts = describe_federated([run for one in groups for run in one.runs])
    assert facts["Classes"] == "3: 0 cat, 1 dog, big, 2 eel" and facts["Clients without training examples"] == "1"
    (folders[1] / "classes.csv").write_text("class,name\n0,dog\n")
    groups, _ = collect(find_run_folders([tmp_path]))
    assert describe_federated([run for one in groups for run in one.runs])["Classes"] == "vary, see classes.csv in the run folders"


def test_a_sample_of_clients_is_another_setting_and_is_said(tmp_path):
    for name, sampled in (("all", None), ("some", 1)):
        evaluation = {"every": 1, "clients": sampled}
        write_whole_run(tmp_path / name, "fedavg", 0, evaluation=evaluation)
    groups, notes = collect(find_run_folders([tmp_path]))
    sampled = "over a sample of 1 clients, drawn anew for each evaluation"
    facts = describe_federated([run for one in groups for run in one.runs])
    assert len({one.setting for one in groups}) == 2 and not notes
    assert facts["Local test accuracy"] == f"varies: {sampled}; over all clients"
    form = NumberFormat()
    for table in (headlines(groups, form), clients(groups, form)):
        assert f"Local accuracies are in some rows {sampled}." in table.legend
    assert "sample" not in headlines([one for one in groups if not one.runs[0].config["evaluation"]["clients"]], form).legend


def test_many_values_are_counted():
    assert varying(["3"]) == "3" and varying(["10", "9", "9"]) == "varies: 9; 10"
    assert varying([str(number) for number in range(8)]) == "varies: 0; 1; 2; 3; 4; 5 and 2 more"


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"commit": null}', '{"commit": 3}'])
def test_a_commit_that_is_not_known(text, tmp_path):
    if text is not None:
        (tmp_path / "environment.json").write_text(text)
    assert commit(tmp_path) == "unknown"
