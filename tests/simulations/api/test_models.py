"""Models of runs: rebuilt from the checkpoint, they score what the run has written."""

import shutil

import pytest
import torch

import fedkd
from fedkd.federation.client import batchnorm_statistic_names
from fedkd.metrics.accuracy import evaluate
from simulations.distillation.setup import make_setup
from simulations.setup.simulation import Simulation, build_simulation
from tests.simulations.api.conftest import SMALL
from tests.small_runs import same_tensors


def simulation_of(run: fedkd.Run) -> Simulation:
    """The data of a run."""
    return build_simulation((run.path / "config.yaml").read_text())


def test_the_global_model_has_the_accuracy_of_the_last_round(runs):
    for run in (runs[0], runs[2]):
        simulation, model = simulation_of(run), run.model()
        assert not model.training
        score = evaluate(model, simulation.global_test, 100, 10, torch.float32)
        assert score.accuracy == run.metrics["global_test_accuracy"].iloc[-1]
        assert model.state_dict().keys() == simulation.model.state_dict().keys()


def test_a_client_s_model_has_its_own_accuracy(runs):
    """With BatchNorm statistics of their own, clients differ from the global model and from each other."""
    run = runs[0]
    simulation, last = simulation_of(run), run.clients[run.clients["round"] == 3].set_index("client_id")
    for client in range(6):
        model = run.model(client)
        score = evaluate(model, simulation.client_data.local_test[client], 100, 10, torch.float32)
        assert score.accuracy == last["local_test_accuracy"][client] and not model.training
    statistics = [key for key in batchnorm_statistic_names(run.model()) if "num_batches" not in key]
    trained = [int(client) for client in last.index[last["trained"] == 1]]
    mine, other = (run.model(client).state_dict() for client in trained[:2])
    assert statistics and not any(torch.equal(mine[key], other[key]) for key in statistics)
    assert all(torch.equal(mine[key], other[key]) for key in mine if key not in batchnorm_statistic_names(run.model()))


def test_models_are_the_same_without_the_record_of_the_task(runs, tmp_path):
    """As a folder has it that was written before there was such a record: then the data are read."""
    for run in (runs[0], runs[2]):
        bare = fedkd.Run(shutil.copytree(run.path, tmp_path / run.path.name))
        (bare.path / "task.json").unlink()
        for client in (None, 0):
            assert same_tensors(run.model(client).state_dict(), bare.model(client).state_dict())


def test_a_model_is_the_caller_s_own(runs):
    first = runs[0].model()
    with torch.no_grad():
        next(first.parameters()).fill_(7.0)
    assert not torch.equal(next(runs[0].model().parameters()), next(first.parameters()))
    assert not torch.equal(next(runs[0].model(client=0).parameters()), next(first.parameters()))


def test_without_a_global_model_clients_have_theirs(tmp_path):
    (run,) = fedkd.run(
        "public_data=held_out", strategy="fedmd", strategy__public_size=40, strategy__batch_size=16, output=str(tmp_path), **SMALL
    )
    with pytest.raises(
        fedkd.RunFolderError, match=r"has no global model, as strategy fedmd has none; client=0 gives that of the first client"
    ):
        run.model()
    simulation, last = simulation_of(run), run.clients[run.clients["round"] == 3].set_index("client_id")
    score = evaluate(run.model(client=2), simulation.client_data.local_test[2], 100, 10, torch.float32)
    assert score.accuracy == last["local_test_accuracy"][2]


def test_a_student_has_the_accuracy_of_its_last_epoch(student):
    model, setup = student.model(), make_setup(student.config)
    score = evaluate(model, setup.test, 100, 10, torch.float32)
    assert score.accuracy == student.metrics["test_accuracy"].iloc[-1] and not model.training
    with pytest.raises(fedkd.RunFolderError, match="client must be None for a distillation"):
        student.model(client=0)


def test_what_is_not_there_is_said_in_a_line(runs, tmp_path):
    for client in (6, -1, True, "0"):
        with pytest.raises(fedkd.RunFolderError, match=r"client must be a number in 0..5, got "):
            runs[0].model(client)
    with pytest.raises(fedkd.RunFolderError, match="path must be a run folder .*, got '/nowhere'"):
        fedkd.Run("/nowhere")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_bytes((runs[0].path / "config.yaml").read_bytes())
    (broken / "checkpoint.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(fedkd.RunFolderError, match="readable checkpoints"):
        fedkd.Run(broken).model()
