"""The training of a student by every method, on real, public and synthetic images."""

from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from safetensors.torch import load_file
from torch.testing import assert_close

from fedkd.distillation.methods.base import Distiller, TeacherStudent
from fedkd.distillation.student_training import Progress
from simulations.distillation.folder import read_rows, read_trained_tensors
from simulations.distillation.runner import compose_distillation, run_distillation
from simulations.distillation.setup import make_setup
from tests.simulations.distillation.small_distillations import METHODS, SYNTHETIC, network_rows, small_distillation

NEUTRAL = {
    "kd": ("ce=1", "weight=0"), "fitnet": ("weight=0",), "at": ("weight=0",), "sp": ("weight=0",), "pkt": ("weight=0",),
    "dkd": ("alpha=0", "beta=0"), "dpk": ("alpha=0", "beta=0"), "information_flow": ("ce=1", "weight=0"), "kddg": ("ce=1", "weight=0"),
    "kd_sp": ("ce=1", "weights.kd=0", "weights.sp=0"),
}  # fmt: skip
"""Parameters with which a method is training with labels alone."""


def student_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the saved student."""
    return load_file(folder / "student.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_student_and_saves_it_without_the_modules_of_the_method(method, output):
    folder = run_distillation(small_distillation(method, output))
    rows = read_rows(folder)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(0 <= float(row["test_accuracy"]) <= 1 and row["test_loss"] for row in rows)
    baseline = run_distillation(small_distillation("none", output))
    student, plain = student_of(folder), student_of(baseline)
    if method != "hsakd_teacher":
        assert {key: value.shape for key, value in student.items()} == {key: value.shape for key, value in plain.items()}
        assert any(not torch.equal(student[key], plain[key]) for key in plain) == (method != "none"), "a method makes a difference"
    table = network_rows(folder)
    assert table["student"]["num_parameters"] == network_rows(baseline)["student"]["num_parameters"]
    assert float(table["student"]["accuracy"]) == float(rows[-1]["test_accuracy"])


@pytest.mark.parametrize("method", NEUTRAL)
def test_a_method_with_zero_weights_equals_training_with_labels_bit_for_bit(method, output):
    neutral = run_distillation(small_distillation(method, output, *(f"distiller.{word}" for word in NEUTRAL[method])))
    student, plain = student_of(neutral), student_of(run_distillation(small_distillation("none", output)))
    assert all(torch.equal(student[key], plain[key]) for key in plain)


def test_every_method_that_adds_terms_to_the_loss_has_neutral_parameters_here():
    targets = {method: compose_distillation([f"distiller={method}"]).distiller["_target_"] for method in METHODS}
    classes = {method: get_object(target) for method, target in targets.items()}
    adding = {method for method, kind in classes.items() if kind.loss is Distiller.loss and kind is not Distiller}
    assert adding <= set(NEUTRAL)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kd", "dpk", "hsakd"])
def test_a_compiled_training_equals_an_eager_one_up_to_rounding(method, output):
    eager, compiled = (
        run_distillation(small_distillation(method, output, f"compile={flag}", "precision=float64", "epochs=1"))
        for flag in ("false", "true")
    )
    left, right = student_of(eager), student_of(compiled)
    for key, value in left.items():
        assert_close(right[key], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", ["kd", "fitnet", "at", "sp", "pkt", "dkd", "dpk", "information_flow", "kddg", "kd_sp", "hsakd"])
def test_no_method_changes_its_teacher(method, output):
    """Neither weights nor BatchNorm statistics change, and no gradient reaches the teacher."""
    setup = make_setup(small_distillation(method, output))
    assert setup.teacher is not None and setup.teacher_training is not None
    trained = read_trained_tensors(run_distillation(setup.teacher_training, wait=True))
    assert any(key.endswith("running_mean") for key in trained)
    training = setup.training({key: value.clone() for key, value in trained.items()})
    training.epoch(Progress(0, setup.initial_tensors))
    assert all(torch.equal(training.teacher_tensors[key], trained[key]) and training.teacher_tensors[key].grad is None for key in trained)
    assert all(parameter.grad is None for parameter in setup.teacher.parameters())


def test_a_student_learns_from_the_images_of_another_data_set(output):
    folder = run_distillation(small_distillation("kd", output, "image_source=public", "data@image_source.data=digits"))
    last = read_rows(folder)[-1]
    assert float(last["ce"]) > 0 and float(last["kd"]) > 0 and "synthesis_oh" not in last
    assert not (folder / "synthetic_images.npz").exists(), "no image was made"


def test_a_student_learns_from_synthetic_images(output):
    last = read_rows(run_distillation(small_distillation("kd", output, *SYNTHETIC)))[-1]
    assert float(last["ce"]) > 0 and float(last["kd"]) > 0 and float(last["synthesis_oh"]) > 0


def test_dpk_fits_its_grid_to_the_feature_maps():
    words = ["distiller=dpk", "distiller.stages=last", "teacher=fedgen_cnn", "student=resnet8"]
    setup = make_setup(compose_distillation(words))
    (prior,) = setup.learner.method.stages
    networks = TeacherStudent(setup.task, setup.learner.student, lambda: None, setup.teacher.student)
    (shapes,) = setup.distiller.compared(networks)
    assert all(shape[1] % prior.grid == 0 for shape in shapes) and prior.grid > 1
