"""Teachers: trained first, taken from a federated run, from its clients' ensemble, or from another distillation."""

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedkd.checkpoint import read_checkpoint, write_checkpoint
from simulations.distillation.folder import read_rows
from simulations.distillation.runner import compose_distillation, run_distillation
from simulations.distillation.setup import make_setup
from simulations.distillation.teachers import federated_teacher, read_finished_config
from tests.simulations.distillation.small_distillations import (
    SYNTHETIC,
    final_accuracy,
    network_rows,
    read_csv,
    small_distillation,
    small_federation,
)


def num_parameters(folder: Path) -> int:
    """The number of parameters of the global model of a federated run."""
    teacher = federated_teacher(folder, read_finished_config(folder), "global_model")
    return sum(parameter.numel() for parameter in teacher.module.parameters())


def test_a_teacher_is_trained_once_and_found_by_the_next_distillation(output, capsys):
    run_distillation(small_distillation("kd", output, "seed=5"))
    capsys.readouterr()
    run_distillation(small_distillation("sp", output, "seed=6"))
    assert capsys.readouterr().err.count("already finished, skipped") == 1


@pytest.mark.parametrize("kind", ["global_model", "client_ensemble"])
def test_the_teacher_is_the_model_of_a_federated_run(kind, ensemble_run, output):
    words = ["student=mlp", "student.widths=[8]", f"teacher_run={ensemble_run}", f"teacher_kind={kind}", "epochs=2", "progress=false"]
    folder = run_distillation(compose_distillation([*words, *SYNTHETIC, f"output={output}"]))
    teacher = network_rows(folder)["teacher"]
    if kind == "global_model":
        accuracy = float(read_csv(ensemble_run / "metrics.csv")[-1]["global_test_accuracy"])
        assert float(teacher["accuracy"]) == pytest.approx(accuracy, abs=1e-12)
    else:
        assert int(teacher["num_parameters"]) == 4 * num_parameters(ensemble_run), "an ensemble of four clients"
    description = json.loads((folder / "student.json").read_text())
    assert description["num_classes"] == 10 and description["network"]["widths"] == [8]


def test_images_are_synthesized_against_every_member_of_an_ensemble(ensemble_run, output):
    words = ["student=mlp", f"teacher_run={ensemble_run}", "teacher_kind=client_ensemble", f"output={output}"]
    setup = make_setup(compose_distillation([*words, *SYNTHETIC]))
    teachers = setup.training(setup.teacher_tensors).teachers(setup.initial_tensors)
    assert len(teachers.members) == 4 and all(set(tensors) == set(network.state_dict()) for network, tensors in teachers.members)


def test_a_method_prepares_the_model_of_a_run_on_the_images_that_the_student_sees(output, tmp_path):
    """Without data, the auxiliary classifiers of HSAKD are trained on synthetic images with the model's own predictions."""
    run = small_federation(output, "strategy=fedavg", "model=resnet8", "model.widths=[5,6,7]", "model.stem=null")
    networks = (f"teacher_run={run}", "student=resnet8", "student.widths=[5,6,7]")
    words = (*networks, *SYNTHETIC, "progress=false", "export=false", "epochs=2", f"output={tmp_path}")
    config = compose_distillation([*words, "distiller=hsakd"])
    training = make_setup(config).teacher_training
    assert training.image_source == config.image_source and training.distiller["_target_"].endswith("HSAKDTeacher")
    folder = run_distillation(compose_distillation([*words, "distiller=hsakd"]))
    assert float(read_rows(folder)[-1]["joint"]) > 0
    sources = [OmegaConf.load(path).image_source["_target_"].rpartition(".")[2] for path in tmp_path.glob("*/*/config.yaml")]
    assert sources == ["Synthetic"] * 2, "nothing was trained on the images of the run"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distiller=hsakd_joint"], "^distiller.teaching trains .* by hsakd_teacher first: image_source must have labels"),
        (
            ["distiller=information_flow", "student=fedgen_cnn"],
            "^distiller.teaching trains cifar_tiny by information_flow first: student_init must not be alone",
        ),
        (["student_init=alone"], "^student_init must not be alone where the images have no labels"),
    ],
)
def test_a_data_free_distillation_rejects_trainings_with_the_labels_of_the_run(words, message, ensemble_run, tmp_path):
    base = [f"teacher_run={ensemble_run}", "student=resnet8", "progress=false", "export=false", "epochs=2", f"output={tmp_path}"]
    with pytest.raises(ValueError, match=message):
        run_distillation(compose_distillation([*base, *SYNTHETIC, *words]))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_student_of_a_distillation_is_the_teacher_of_the_next(output):
    first = run_distillation(small_distillation("kd", output))
    words = [f"teacher_run={first}", "student=mlp", "student.widths=[8]", "epochs=2", "steps_per_epoch=3", "progress=false"]
    second = run_distillation(compose_distillation([*words, f"output={output}"]))
    assert float(network_rows(second)["teacher"]["accuracy"]) == final_accuracy(first)


def test_the_teacher_of_a_run_keeps_its_name_if_the_method_prepares_it(output):
    folder = run_distillation(small_distillation("none", output))
    words = [f"teacher_run={folder}", "student=resnet8", "student.widths=[5,6,7]", "batch_size=16", f"output={output}"]
    for method in ("kd", "hsakd"):
        setup = make_setup(compose_distillation([*words, f"distiller={method}"]))
        assert setup.config.choices.teacher == "resnet8" and setup.config.teacher is None
    assert setup.teacher_training is not None and setup.teacher_tensors is None


def test_an_auxiliary_teacher_is_trained_between_teacher_and_student(tmp_path, capsys):
    auxiliary = [
        "model@student=fedgen_cnn", "student_init=alone", "distiller=information_flow", "distiller.layers=last", "distiller.teaching=[]",
    ]  # fmt: skip
    networks = ("student=fedgen_cnn", "student.widths=[3,4]", "teacher=resnet14", "teacher.widths=[6,8,10]")
    sizes = ("epochs=1", "steps_per_epoch=2", "batch_size=16", "progress=false", "export=false")
    method = ("distiller=information_flow", f"distiller.teaching={auxiliary}")
    run_distillation(compose_distillation([*networks, *sizes, *method, f"output={tmp_path}"]))
    lines = [line for line in capsys.readouterr().out.splitlines() if "accuracy" in line]
    assert [line.partition(" on ")[0] for line in lines] == [
        "resnet14 by none",
        "fedgen_cnn by none",
        "resnet14 to fedgen_cnn by information_flow",
        "resnet14 to fedgen_cnn by information_flow",
    ]
    assert len(list((tmp_path / "distilled").iterdir())) == 4


# ------------------------------------------------------------------------------------------- rejected teachers
def test_a_run_is_rejected_together_with_other_data_or_another_teacher():
    message = r"^teacher_run must be null where data or a teacher are chosen, .* got 'there' with model@teacher=resnet20$"
    with pytest.raises(ValueError, match=message):
        compose_distillation(["teacher_run=there", "teacher=resnet20"])


def test_a_teacher_with_another_number_of_classes_is_rejected(output):
    folder = run_distillation(small_distillation("none", output, "num_classes=5", "num_train_images=100"))
    with pytest.raises(ValueError, match=r"^teacher must have the task's number of classes, 3, got 5$"):
        run_distillation(compose_distillation([f"teacher_run={folder}", "student=mlp", "num_classes=3", f"output={output}"]))


def test_a_method_that_trains_another_teacher_is_rejected_on_a_run(output):
    folder = run_distillation(small_distillation("none", output))
    words = [f"teacher_run={folder}", "student=resnet8", "distiller=hsakd_joint", "progress=false", f"output={output}"]
    with pytest.raises(ValueError, match=r"^distiller must be a method that learns from the run's model .* got 'hsakd_joint'$"):
        run_distillation(compose_distillation(words))


def test_an_unfinished_run_is_rejected(ensemble_run, tmp_path):
    copy = Path(shutil.copytree(ensemble_run, tmp_path / "run"))
    write_checkpoint(copy, read_checkpoint(copy), rounds=7)
    with pytest.raises(ValueError, match=r"^teacher_run must be finished; .*\(2 of 7 done\), got"):
        run_distillation(compose_distillation([f"teacher_run={copy}", f"output={tmp_path}"]))
