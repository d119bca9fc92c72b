"""A run of the command: its run folder, its output, its configuration, and its columns."""

import csv
import gc
import json
import platform
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import fedkd
from fedkd.checkpoint import read_checkpoint
from fedkd.config.build import config_hash
from simulations.cli.hydra_command import overrides_first
from simulations.config import compose
from simulations.federation.runner import make_paths_absolute, run_federation
from simulations.overrides import explain
from simulations.setup.simulation import build_simulation
from tests.processes import TINY, quick, run
from tests.small_runs import same_tensors, strategy_overrides

GIVEN = ("engine=local", *TINY, "output=runs")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run of seven rounds by the command. Every third round and the last one are evaluated."""
    where = tmp_path_factory.mktemp("run")
    ended = run(where, *GIVEN, "rounds=7", "evaluation.every=3", "progress=true")
    assert ended.code == 0, ended.err
    return ended


@pytest.fixture(scope="module")
def table(ended):
    """The rows of metrics.csv."""
    return read_csv(ended.folder / "metrics.csv")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, with all cells as text."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_files_and_standard_output(ended):
    first, last = ended.out.splitlines()
    assert first.startswith("round 7: global test accuracy 0.") and last == f"run: {ended.folder}"
    assert {path.name for path in ended.folder.iterdir()} - {".lock"} == {
        "config.yaml", "environment.json", "metrics.csv", "clients.csv", "partition.npz", "classes.csv", "task.json",
        "checkpoint.safetensors", "checkpoint.json", "previous_checkpoint.safetensors",
    }  # fmt: skip
    assert [path.name for path in ended.folder.parents[2].iterdir()] == ["runs"], "there are no files outside the output folder"


def test_progress_without_a_terminal(ended):
    lines = ended.err.splitlines()
    assert len(lines) == 7 and re.fullmatch(r"fedgen on digits, seed 0: round 1/7 0:00:\d\d left", lines[0]), lines
    assert re.fullmatch(r"fedgen on digits, seed 0: round 6/7 global 0\.\d+, local 0\.\d+, 0:00:0\d left", lines[5]), lines
    assert re.fullmatch(r"fedgen on digits, seed 0: round 7/7 global 0\.\d+, local 0\.\d+", lines[6]), lines
    assert "\x1b" not in ended.err


def test_rounds_without_evaluation_have_empty_cells(table):
    assert [row["round"] for row in table] == list("1234567")
    columns = (
        "global_test_accuracy", "local_test_accuracy", "local_test_accuracy_bottom10", "local_test_accuracy_std", "global_test_loss",
        "global_test_accuracy_class_00",
    )  # fmt: skip
    for row in table:
        is_evaluated = row["round"] in "367"
        assert all((row[name] != "") == is_evaluated for name in columns), row
        assert float(row["train_loss"]) > 0 and int(row["uplink_bytes"]) > 0 and row["num_failures"] == "0"


def test_metrics_agree_with_the_rows_of_the_clients(table, ended):
    clients = read_csv(ended.folder / "clients.csv")
    last = [row for row in clients if row["round"] == "7"]
    assert [row["client_id"] for row in last] == list("012345") and sum(int(row["trained"]) for row in last) == 4
    tested = [(int(row["num_test_examples"]), float(row["local_test_accuracy"])) for row in last if int(row["num_test_examples"])]
    micro = sum(n * accuracy for n, accuracy in tested) / sum(n for n, _ in tested)
    assert float(table[-1]["local_test_accuracy"]) == pytest.approx(micro, abs=1e-12)
    first = [row for row in clients if row["round"] == "1"]
    assert len(first) == 4 and all(row["trained"] == "1" and row["local_test_accuracy"] == "" for row in first)
    weights = np.array([int(row["num_train_examples"]) for row in first])
    losses = np.array([float(row["train_loss"]) for row in first])
    assert float(table[0]["train_loss"]) == pytest.approx((weights * losses).sum() / weights.sum(), rel=1e-6)
    with np.load(ended.folder / "partition.npz") as partition:
        assert [len(partition[f"train_{c:02d}"]) for c in range(6)] == [int(row["num_train_examples"]) for row in last]


def test_config_and_environment(ended):
    config = yaml.safe_load((ended.folder / "config.yaml").read_text())
    assert config["rounds"] == 7 and config["strategy"]["generator_steps"] == 3
    assert config["strategy"]["_target_"] == "strategies.fedgen.FedGen"
    assert config["choices"]["strategy"] == "fedgen" and config["choices"]["data"] == "digits" and config["name"] == "digits"
    assert "${" not in (ended.folder / "config.yaml").read_text(), "interpolations are resolved"
    environment = json.loads((ended.folder / "environment.json").read_text())
    assert environment["python"] == platform.python_version() and environment["versions"]["torch"] == torch.__version__
    assert environment["threads_per_worker"] == 1 and isinstance(environment["uncommitted_changes"], bool)
    assert read_checkpoint(ended.folder).config == ended.folder.name


def test_fewer_evaluations_do_not_change_the_model(ended, tmp_path):
    other = quick(tmp_path, *GIVEN, "rounds=7").folder
    models = [read_checkpoint(folder).state["model"] for folder in (ended.folder, other)]
    assert other.name != ended.folder.name and same_tensors(*models)


@pytest.mark.parametrize(
    "words", [("--cfg", "job", "--resolve", *GIVEN), (*GIVEN, "--cfg", "job", "--resolve"), ("--resolve", *GIVEN, "-c", "job")]
)
def test_the_configuration_is_printed(tmp_path, words):
    ended = quick(tmp_path, *words)
    printed = yaml.safe_load(ended.out)
    assert ended.code == 0, ended.err
    assert printed["rounds"] == 100 and printed["strategy"]["generator"]["hidden"] == 256 and printed["local_steps"] == 3
    assert printed["name"] == "digits", "the name of the folder of the run"
    assert not (tmp_path / "runs").exists()


def test_options_may_stand_between_overrides(tmp_path):
    (tmp_path / "fedkd.yaml").write_text("searchpath: mine\n")
    (tmp_path / "mine").mkdir()
    ended = quick(tmp_path, "engine=local", "-m", *TINY, "rounds=1", "seed=0,1", "output=runs")
    assert ended.code == 0 and ended.out.count("run: ") == 2, ended.err


def test_overrides_come_first():
    words = ["a=1", "--cfg", "job", "~b", "-m", "+c=2", "--info", "config", "d=3", "--config-dir=x", "-i", "e=4"]
    assert overrides_first(words) == ["a=1", "~b", "+c=2", "d=3", "e=4", "--cfg", "job", "-m", "--info", "config", "--config-dir=x", "-i"]


def test_one_client_in_double_precision(tmp_path):
    given = ("num_clients=1", "clients_per_round=1", "rounds=1", "precision=float64", "local_steps=null", "local_epochs=1")
    ended = quick(tmp_path, *GIVEN, *given)
    assert ended.code == 0, ended.err
    model = read_checkpoint(ended.folder).state["model"]
    assert {value.dtype for key, value in model.items() if "num_batches" not in key} == {torch.float64}


def test_traceback_with_hydra_full_error(tmp_path):
    ended = run(tmp_path, *GIVEN, "partition.alpha=0", HYDRA_FULL_ERROR="1")
    assert ended.code == 1 and "Traceback" in ended.err and "partition.alpha must be > 0" in ended.err


def test_memory_does_not_grow_by_the_round(tmp_path):
    """Neither containers nor tensors are kept from round to round. (Numbers are: those of each evaluation.)"""
    sizes = []

    class Count(fedkd.Callback):
        def on_round(self, run, round, metrics, clients):
            if round in (4, 16):
                gc.collect()
                objects = gc.get_objects()
                sizes.append((len(objects), sum(one.nbytes for one in objects if type(one) is torch.Tensor)))

    words = [word for word in GIVEN if not word.startswith(("strategy", "output", "local_steps"))]  # few steps, so that none is recorded
    fedkd.run(*words, "strategy=moon", "model=mlp", "rounds=16", "local_steps=1", f"output={tmp_path}", callbacks=[Count()])
    (objects, tensors), (objects_later, tensors_later) = sizes
    assert objects_later - objects < 12 and tensors_later <= tensors


def test_errors_of_hydra_become_one_line():
    error = ValueError("Could not override 'x'.\nTo append to your config use +x=1")
    error.__cause__ = ValueError("Key 'x' not in 'Run'\n    full_key: x\n    object_type=Run")
    assert explain(error) == "Could not override 'x'.; Key 'x' not in 'Run'"


def test_paths_of_data_and_partition_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose(["data=mnist", "data.root=here", "partition=from_file", "partition.path=mine/x.npz"])
    make_paths_absolute(config)
    assert config.data.root == str(tmp_path / "here") and config.partition.path == str(tmp_path / "mine" / "x.npz")
    assert config.data.cache is None


def test_paths_of_a_nested_partition_become_absolute_and_do_not_change_the_hash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose(["partition=subsample", "partition@partition.base=from_file", "partition.base.path=x.npz"])
    before = config_hash(config, {})
    make_paths_absolute(config)
    assert config.partition.base.path == str(tmp_path / "x.npz") and config_hash(config, {}) == before
    config.partition.sigma = 0.5
    assert config_hash(config, {}) != before


def test_the_header_has_the_columns_of_evaluated_rounds(tmp_path):
    """The header is written in round 1, which is not evaluated."""
    given = [word for word in GIVEN if not word.startswith("strategy.")]
    more = ("strategy=feddf", "public_data=held_out", "strategy.steps=2", "strategy.batch_size=8", "rounds=4", "evaluation.every=2")
    rows = read_csv(quick(tmp_path, *given, *more).folder / "metrics.csv")
    assert [row["global_test_accuracy_before_distillation"] != "" for row in rows] == [False, True, False, True]
    assert [row["distillation_steps"] for row in rows] == ["2.0"] * 4 and list(rows[0])[-1] == "global_test_accuracy_class_09"


@pytest.mark.parametrize(
    "strategy, columns",
    [
        ("feddf", ["global_test_accuracy_before_distillation"]),
        ("fedftg", ["global_test_accuracy_before_distillation"]),
        ("dense", ["ensemble_test_accuracy", "global_test_accuracy_before_distillation"]),
    ],
)
def test_accuracy_of_teachers_and_of_the_model_before_distillation(tmp_path, strategy, columns):
    """The columns equal the accuracies of models with the tensors of the checkpoint."""
    given = [word for word in GIVEN if not word.startswith(("strategy.", "output"))]
    words = [*given, f"strategy={strategy}", *strategy_overrides(strategy), "rounds=2", "local_steps=20", "optimizer.lr=0.1"]
    folder = run_federation(compose([*words, f"output={tmp_path}"]))
    last = read_csv(folder / "metrics.csv")[-1]
    state, simulation = read_checkpoint(folder).state, build_simulation((folder / "config.yaml").read_text())
    x, y = simulation.global_test.x / 16, simulation.global_test.y

    def logits(tensors: dict) -> torch.Tensor:
        simulation.model.load_state_dict(tensors)
        with torch.no_grad():
            return simulation.model.eval()(x).logits

    expected = {"global_test_accuracy": logits(state["model"]), "global_test_accuracy_before_distillation": logits(state["average"])}
    if "ensemble_test_accuracy" in columns:
        expected["ensemble_test_accuracy"] = sum(logits(tensors) for part, tensors in state.items() if part.startswith("member-"))
        assert sum(part.startswith("member-") for part in state) == 4
    for column, z in expected.items():
        assert float(last[column]) == pytest.approx((z.argmax(-1) == y).double().mean().item(), abs=1.5 / len(y)), column
    possible = ("global_test_accuracy_before_distillation", "ensemble_test_accuracy")
    assert sorted(column for column in last if column in possible) == columns
    assert float(last["global_test_accuracy_before_distillation"]) > 0.2
