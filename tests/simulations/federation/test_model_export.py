"""``fedkd export``: files that give the run's model without fedkd."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file

import fedkd
from simulations.cli.main import cli

TINY = ("num_clients=3", "clients_per_round=2", "local_steps=2", "clients_per_vmap=1", "rounds=1", "engine=local", "progress=false")
X = torch.rand(5, 1, 8, 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A federated run whose clients keep their BatchNorm statistics."""
    (one,) = fedkd.run(*TINY, "strategy=fedavg", output=str(tmp_path_factory.mktemp("runs")))
    return one


def export(*words: object) -> tuple[int, list[str], str]:
    """Exit code, the files that are named, and the error."""
    result = CliRunner().invoke(cli, ["export", *map(str, words)])
    return result.exit_code, result.stdout.splitlines(), result.stderr


@pytest.mark.parametrize(("words", "name", "client"), [([], "global_model", None), (["--client", 1], "client_1", 1)])
def test_the_files_hold_the_model_of_the_run(run, words, name, client, tmp_path):
    code, files, error = export(run.path, *words, "--output", tmp_path)
    assert code == 0, error
    assert files == [str(tmp_path / f"{name}.{suffix}") for suffix in ("safetensors", "json", "pt2")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.{suffix}" for suffix in ("safetensors", "json", "pt2"))
    model = run.model(client)
    with torch.no_grad():
        expected = model(X).logits
        assert torch.allclose(torch.export.load(files[2]).module()(X), expected, atol=1e-6)
    tensors = load_file(files[0])
    assert tensors.keys() == model.state_dict().keys() and all(value.equal(tensors[key]) for key, value in model.state_dict().items())
    about = json.loads((tmp_path / f"{name}.json").read_text())
    assert about["shape"] == [1, 8, 8] and about["num_classes"] == 10 and about["scale"] == 16.0
    assert about["network"]["_target_"] == run.config.model._target_
    with safe_open(files[0], "pt") as file:
        assert json.loads(file.metadata()["fedkd"]) == about


def test_without_a_folder_the_files_are_in_the_run_s(run):
    code, files, _ = export(run.path)
    assert code == 0 and files[0] == str(run.path / "export" / "global_model.safetensors")


def test_a_student_is_exported_with_its_own_description(tmp_path):
    words = ("teacher=mlp", "student=mlp", "student.widths=[8]", "epochs=1", "num_train_images=60", "export=false", "progress=false")
    (one,) = fedkd.distill(None, *words, output=str(tmp_path))
    code, files, error = export(one.path)
    assert code == 0, error
    with torch.no_grad():
        assert torch.allclose(torch.export.load(files[2]).module()(X), one.model()(X).logits, atol=1e-6)
    assert json.loads((one.path / "export" / "student.json").read_text())["network"]["widths"] == [8]


def test_a_network_without_program_is_written_as_tensors_and_said(tmp_path):
    network = ("~model", "+model._target_=tests.own_networks.untraceable", "+model._partial_=true", "allow_targets=[tests]")
    (one,) = fedkd.run(*TINY, "strategy=fedavg", *network, output=str(tmp_path))
    code, _, error = export(one.path)
    assert (
        code == 2 and error.startswith("error: global_model must be a network that torch.export can read, got ") and error.count("\n") == 1
    )
    assert sorted(path.name for path in (one.path / "export").iterdir()) == ["global_model.json", "global_model.safetensors"]


@pytest.mark.parametrize(
    ("words", "message"), [(["--client", 3], "client must be a number in 0..2, got 3"), (["--client", -1], "'--client'")]
)
def test_a_client_that_does_not_exist(run, words, message):
    code, files, error = export(run.path, *words)
    assert code == 2 and files == [] and message in error


def test_a_strategy_without_a_global_model_says_so(tmp_path):
    (one,) = fedkd.run(*TINY, "strategy=fedproto", output=str(tmp_path))
    code, _, error = export(one.path)
    assert code == 2 and "has no global model" in error and export(one.path, "--client", 0)[0] == 0
