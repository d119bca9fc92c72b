"""A run from the command line, and what it leaves behind."""

import csv
import json
import platform

import numpy as np
import pytest
import torch
import yaml

from fedkd.checkpoint import read_checkpoint
from fedkd.config.build import config_hash
from simulations.config import compose
from simulations.federation.runner import make_paths_absolute, run_federation
from simulations.overrides import explain
from simulations.setup.simulation import build_simulation
from tests.processes import TINY, quick, run
from tests.small_runs import strategy_overrides

GIVEN = ("engine=local", *TINY, "output=runs")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run of seven rounds, of which every third is evaluated, by the command itself."""
    where = tmp_path_factory.mktemp("run")
    ended = run(where, *GIVEN, "rounds=7", "evaluation.every=3", "progress=true")
    assert ended.code == 0, ended.err
    return ended


@pytest.fixture(scope="module")
def table(ended):
    with open(ended.folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_last_line_names_the_folder(ended):
    assert ended.out.count("\n") == 2 and ended.out.splitlines()[0].startswith("round 7: accuracy 0.")
    assert {path.name for path in ended.folder.iterdir()} - {".lock"} == {
        "config.yaml", "environment.json", "metrics.csv", "clients.csv", "partition.npz", "partition.png", "partition.pdf",
        "checkpoint.safetensors", "checkpoint.json",
    }  # fmt: skip
    assert [path.name for path in ended.folder.parents[2].iterdir()] == ["runs"], "nothing beside the output"


def test_progress_is_a_few_lines_where_there_is_no_terminal(ended):
    lines = ended.err.splitlines()
    assert len(lines) == 7 and lines[-1].startswith("fedgen on digits, seed 0: round 7/7 accuracy")
    assert "\x1b" not in ended.err


def test_rounds_that_are_not_evaluated_have_empty_cells(table):
    assert [row["round"] for row in table] == list("1234567")
    for row in table:
        evaluated = row["round"] in "367"
        scores = [
            row[name]
            for name in (
                "accuracy",
                "local_test_accuracy",
                "local_test_accuracy_bottom10",
                "local_test_accuracy_std",
                "loss",
                "global_test_accuracy_class_00",
            )
        ]
        assert all((cell != "") == evaluated for cell in scores), row
        assert float(row["train_loss"]) > 0 and int(row["uplink_bytes"]) > 0 and row["num_failures"] == "0"


def test_columns_agree_with_one_another(table, ended):
    with open(ended.folder / "clients.csv", newline="") as file:
        clients = list(csv.DictReader(file))
    last = [row for row in clients if row["round"] == "7"]
    assert [row["client"] for row in last] == list("012345") and sum(int(row["participated"]) for row in last) == 4
    tested = [(int(row["num_test_examples"]), float(row["local_test_accuracy"])) for row in last if int(row["num_test_examples"])]
    micro = sum(n * accuracy for n, accuracy in tested) / sum(n for n, _ in tested)
    assert float(table[-1]["local_test_accuracy"]) == pytest.approx(micro, abs=1e-12)
    first = [row for row in clients if row["round"] == "1"]
    assert len(first) == 4 and all(row["participated"] == "1" and row["local_test_accuracy"] == "" for row in first)
    weights = np.array([int(row["num_examples"]) for row in first])
    losses = np.array([float(row["loss"]) for row in first])
    assert float(table[0]["train_loss"]) == pytest.approx((weights * losses).sum() / weights.sum(), rel=1e-6)
    with np.load(ended.folder / "partition.npz") as partition:
        assert [len(partition[f"train_{c:02d}"]) for c in range(6)] == [int(row["num_examples"]) for row in last]


def test_config_and_environment(ended):
    config = yaml.safe_load((ended.folder / "config.yaml").read_text())
    assert (
        config["rounds"] == 7
        and config["strategy"]["_target_"] == "strategies.fedgen.FedGen"
        and config["strategy"]["generator_steps"] == 3
    )
    assert config["choices"]["strategy"] == "fedgen" and config["choices"]["data"] == "digits" and config["name"] == "digits"
    assert "${" not in (ended.folder / "config.yaml").read_text(), "it is resolved"
    environment = json.loads((ended.folder / "environment.json").read_text())
    assert environment["python"] == platform.python_version() and environment["versions"]["torch"] == torch.__version__
    assert environment["threads_per_worker"] == 1 and isinstance(environment["uncommitted_changes"], bool)
    assert read_checkpoint(ended.folder).config == ended.folder.name


def test_evaluating_less_often_changes_no_model(ended, tmp_path):
    other = quick(tmp_path, *GIVEN, "rounds=7").folder
    ours, theirs = (read_checkpoint(folder).state["model"] for folder in (ended.folder, other))
    assert other.name != ended.folder.name and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_configuration_is_printed(tmp_path):
    ended = quick(tmp_path, *GIVEN, "--cfg", "job")
    printed = yaml.safe_load(ended.out)
    assert ended.code == 0 and printed["rounds"] == 100 and printed["strategy"]["generator"]["hidden"] == 256
    assert not (tmp_path / "runs").exists()


def test_one_client_in_double_precision(tmp_path):
    given = ("num_clients=1", "clients_per_round=1", "rounds=1", "precision=float64", "local_steps=null", "local_epochs=1")
    ended = quick(tmp_path, *GIVEN, *given)
    assert ended.code == 0, ended.err
    assert all(
        value.dtype == torch.float64 for key, value in read_checkpoint(ended.folder).state["model"].items() if "num_batches" not in key
    )


def test_a_traceback_for_who_asks(tmp_path):
    ended = run(tmp_path, *GIVEN, "partition.alpha=0", HYDRA_FULL_ERROR="1")
    assert ended.code == 1 and "Traceback" in ended.err and "partition.alpha must be > 0" in ended.err


def test_explain_gives_one_line():
    error = ValueError("Could not override 'x'.\nTo append to your config use +x=1")
    error.__cause__ = ValueError("Key 'x' not in 'Run'\n    full_key: x\n    object_type=Run")
    assert explain(error) == "Could not override 'x'.; Key 'x' not in 'Run'"


def test_paths_of_the_data_are_absolute_for_workers_that_stand_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose(["data=mnist", "data.root=here", "partition=from_file", "partition.path=mine/x.npz"])
    make_paths_absolute(config)
    assert config.data.root == str(tmp_path / "here") and config.partition.path == str(tmp_path / "mine" / "x.npz")
    assert config.data.cache is None


def test_paths_of_a_partition_within_a_partition_are_absolute_and_not_in_the_hash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose(["partition=subsample", "partition@partition.base=file", "partition.base.path=x.npz"])
    before = config_hash(config, {})
    make_paths_absolute(config)
    assert config.partition.base.path == str(tmp_path / "x.npz") and config_hash(config, {}) == before
    config.partition.sigma = 0.5
    assert config_hash(config, {}) != before


def test_columns_that_only_evaluated_rounds_have_are_there(tmp_path):
    """The header is written in round 1, which is not evaluated."""
    given = [one for one in GIVEN if not one.startswith("strategy.")]
    more = ("strategy=feddf", "public_data=held_out", "strategy.steps=2", "strategy.batch_size=8", "rounds=4", "evaluation.every=2")
    with open(quick(tmp_path, *given, *more).folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["global_test_accuracy_before_distillation"] != "" for row in rows] == [False, True, False, True]
    assert [row["distillation_steps"] for row in rows] == ["2.0"] * 4 and list(rows[0])[-1] == "global_test_accuracy_class_09"


@pytest.mark.parametrize("name, others", [("feddf", ["average"]), ("fedftg", ["average"]), ("dense", ["average", "ensemble"])])
def test_what_a_server_distilled_is_measured_beside_what_it_began_from(tmp_path, name, others):
    """Against networks filled from the checkpoint and counted by hand."""
    given = [one for one in GIVEN if not one.startswith(("strategy.", "output"))]
    config = compose([*given, f"strategy={name}", *strategy_overrides(name), "rounds=2", "local_steps=20", "optimizer.lr=0.1", f"output={tmp_path}"])
    folder = run_federation(config)
    with open(folder / "metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    state, simulation = read_checkpoint(folder).state, build_simulation((folder / "config.yaml").read_text())
    x, y = simulation.global_test.x / 16, simulation.global_test.y

    def logits(tensors: dict) -> torch.Tensor:
        simulation.model.load_state_dict(tensors)
        with torch.no_grad():
            return simulation.model.eval()(x).logits

    said = {"accuracy": logits(state["model"]), "global_test_accuracy_before_distillation": logits(state["average"])}
    if "ensemble" in others:
        said["ensemble_test_accuracy"] = sum(logits(tensors) for part, tensors in state.items() if part.startswith("member-"))
        assert sum(part.startswith("member-") for part in state) == 4
    for column, z in said.items():
        assert float(last[column]) == pytest.approx((z.argmax(-1) == y).double().mean().item(), abs=1.5 / len(y)), column
    assert sorted(column for column in last if column in ("global_test_accuracy_before_distillation", "ensemble_test_accuracy")) == [
        f"accuracy_{o}" for o in others
    ]
    assert len(set(said)) == len(others) + 1 and float(last["global_test_accuracy_before_distillation"]) > 0.2
