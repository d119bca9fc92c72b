"""Configurations that are rejected before anything is trained."""

import pytest

from simulations.distillation.runner import compose_distillation, run_distillation
from tests.simulations.distillation.small_distillations import small_distillation


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distiller=dpk", "batch_size=3"], r"^batch_size must be > 3 where ratio=dynamic: .* got 3$"),
        (["distiller=at", "student=fedgen_cnn"], r"^student must be a network of as many stages as the teacher, 3, .* got 2$"),
        (["distiller=fitnet", "student=mlp"], r"^student must be a network whose stages are feature maps .*, got \[\(128,\), \(32,\)\]$"),
        (["distiller=sp", "distiller.stage=3"], r"^distiller\.stage must be a stage of the student, which has 3 .* got 3$"),
        (["distiller=hsakd_online", "student=mlp"], r"^student must be a network with an extra stage \(ResNet, .* got 'MLP'$"),
        (["distiller=online_ensemble", "student=mlp"], r"^student must be a ResNet, .* got 'MLP'$"),
        (
            ["distiller=hsakd_teacher", "distiller.frozen=false", "image_source=public"],
            r"^image_source must have labels for distiller hsakd_teacher, .* got 'public'$",
        ),
        (
            ["distiller=dpk", "student=fedgen_cnn"],
            r"^student must be a network of as many stages as the teacher, 3, .* \(distiller\.stages=last .*\), got 2$",
        ),
        (
            ["distiller=information_flow", "student=fedgen_cnn"],
            r"^distiller\.teaching trains cifar_tiny by information_flow first: student\.widths must leave at least one pixel",
        ),
        (
            ["image_source=public", "data@image_source.data=rotated_mnist"],
            r"^image_source\.data\.data\.root must hold the files of mnist, got ",
        ),
        (["++teacher_run=${nowhere}"], r"^teacher_run must hold an interpolation that can be resolved: .*nowhere"),
        (["teacher_run=nowhere"], r"^teacher_run must be a run folder .* got '.*nowhere'$"),
        (["epochs=0"], r"^epochs must be >= 1, got 0$"),
        (["milestones=[0.9,0.5]"], r"^milestones must be ascending"),
        (["milestones=[[0.5]]"], r"^milestones must be ascending fractions .* got \[\[0\.5\]\]"),
        (["distiller.temperature=0"], r"^distiller\.temperature must be > 0, got 0"),
        (["distiller=kd_sp", "distiller.parts.kd.ce=1"], r"^distiller\.parts\.kd\.ce must be 0: the sum has the cross-entropy, got 1"),
        (["distiller=at", "distiller.power=0.5"], r"^distiller\.power must be >= 1 \(2 is the paper's\), got 0\.5$"),
        (
            ["distiller=information_flow", "distiller.kernels=[normal]"],
            r"^distiller\.kernels must name one or more of cosine, .*, got \['normal'\]$",
        ),
        (
            ["distiller=dpk", "image_source=synthetic", "image_source.batch_size=3"],
            r"^batch_size must be > 3 where ratio=dynamic: .* got 3$",
        ),
        (
            ["student=mlp", "student_init=teacher"],
            r"^student_init must be a network with the same parameters as the student, got 'teacher'$",
        ),
        (
            ["student_init=nowhere"],
            r"^student_init must be null, teacher, alone, or the folder of a finished distillation, got '.*nowhere'$",
        ),
        (["num_classes=11"], r"^num_classes must be at most the number of classes of the data, 10, got 11$"),
        (["num_train_images=5"], r"^num_train_images must be at least one and at most \d+ images of each of 10 classes, got 5$"),
    ],
)
def test_a_wrong_value_is_rejected_before_anything_is_trained(overrides, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_distillation(compose_distillation(["progress=false", f"output={tmp_path}", *overrides]))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_student_is_not_initialized_with_another_network(output, tmp_path):
    folder = run_distillation(small_distillation("none", output))
    with pytest.raises(ValueError, match=r"^student_init must be a network with the same parameters as the student, got '.*'$"):
        run_distillation(compose_distillation(["student=mlp", f"student_init={folder}", "progress=false", f"output={tmp_path}"]))
    assert not list(tmp_path.rglob("*.safetensors"))
