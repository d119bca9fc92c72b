"""Central distillation, from the command's configuration to what leaves the house, on real digits."""

import csv
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.testing import assert_close

from simulations.distillation import runner
from simulations.distillation.folder import read_rows, read_trained_tensors
from simulations.distillation.runner import compose_distillation, run_distillation
from simulations.distillation.setup import make_setup
from simulations.progress import ProgressBar
from tests.small_runs import ROOT

DISTILLERS = sorted(path.stem for path in (ROOT / "conf" / "distiller").glob("*.yaml"))
SMALL = (
    "teacher=resnet14", "teacher.widths=[6,8,10]", "student=resnet8", "student.widths=[5,6,7]", "epochs=2", "steps_per_epoch=3", "batch_size=16",
    "progress=false", "export=false", "num_train_images=200",
)  # fmt: skip
FEDERATION = ("engine=local", "num_clients=4", "clients_per_round=2", "local_steps=3", "clients_per_vmap=1", "progress=false")
TINY = {
    "dpk": ("distiller.grid=2", "distiller.width=8", "distiller.heads=2", "distiller.depth=1"),
    "information_flow": ("distiller.teaching=[]",),
}
NEUTRAL = {
    "kd": ("ce=1", "weight=0"), "fitnet": ("weight=0",), "at": ("weight=0",), "sp": ("weight=0",), "pkt": ("weight=0",),
    "dkd": ("alpha=0", "beta=0"), "dpk": ("alpha=0", "beta=0"), "information_flow": ("ce=1", "weight=0"), "kddg": ("ce=1", "weight=0"),
    "kd_sp": ("ce=1", "weights.kd=0", "weights.sp=0"),
}  # fmt: skip


def small(name: str, folder: Path, *overrides: str):
    """A tiny distillation of one method."""
    return compose_distillation([*SMALL, f"output={folder}", f"distiller={name}", *TINY.get(name, ()), *overrides])


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """One folder for all, so that a teacher is trained once."""
    return tmp_path_factory.mktemp("house")


@pytest.mark.parametrize("name", DISTILLERS)
def test_every_method_trains_a_student_that_leaves_without_the_method_s_modules(name, house):
    folder = run_distillation(small(name, house))
    seen = read_rows(folder)
    assert [row["epoch"] for row in seen] == ["0", "1", "2"]
    assert all(0 <= float(row["accuracy"]) <= 1 and row["loss"] for row in seen)
    alone = run_distillation(small("none", house))
    student, plain = load_file(folder / "student.safetensors"), load_file(alone / "student.safetensors")
    if name != "hsakd_teacher":
        assert {key: value.shape for key, value in student.items()} == {key: value.shape for key, value in plain.items()}
        assert any(not torch.equal(student[key], plain[key]) for key in plain) == (name != "none"), "a method makes a difference"
    with open(folder / "models.csv", newline="") as file:
        table = {row["network"]: row for row in csv.DictReader(file)}
    with open(alone / "models.csv", newline="") as file:
        assert table["student"]["parameters"] == next(csv.DictReader(file))["parameters"]
    assert float(table["student"]["accuracy"]) == float(seen[-1]["accuracy"])


@pytest.mark.parametrize("name", NEUTRAL)
def test_with_its_weights_at_zero_a_method_is_training_with_labels_bit_for_bit(name, house):
    neutral = run_distillation(small(name, house, *(f"distiller.{one}" for one in NEUTRAL[name])))
    alone = run_distillation(small("none", house))
    left, right = load_file(neutral / "student.safetensors"), load_file(alone / "student.safetensors")
    assert all(torch.equal(left[key], right[key]) for key in right)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kd", "dpk", "hsakd"])
def test_compiled_from_the_first_step_on_a_method_trains_to_the_same_but_for_rounding(name, house):
    plain, compiled = (
        run_distillation(small(name, house, f"compile={flag}", "precision=float64", "epochs=1")) for flag in ("false", "true")
    )
    left, right = load_file(plain / "student.safetensors"), load_file(compiled / "student.safetensors")
    for key, value in left.items():
        assert_close(right[key], value, rtol=1e-7, atol=1e-9)


def test_every_method_that_adds_terms_has_a_neutral_setting_here():
    from hydra.utils import get_object

    from fedkd.distillation.methods.base import Distiller

    nodes = {name: compose_distillation([f"distiller={name}"]).distiller["_target_"] for name in DISTILLERS}
    kinds = {name: get_object(target) for name, target in nodes.items()}
    adds = {name for name, kind in kinds.items() if kind.loss is Distiller.loss and kind is not Distiller}
    assert adds <= set(NEUTRAL)


@pytest.mark.parametrize("name", ["kd", "dpk", "hsakd", "online_ensemble", "dkd"])
def test_interrupted_and_started_again_is_never_interrupted(name, house, tmp_path, monkeypatch):
    whole = run_distillation(small(name, house, "epochs=3"))
    advance = ProgressBar.advance

    def stop(self, row):
        advance(self, row)
        if row["epoch"] == 2 and "none" not in self._label and "teacher" not in self._label:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressBar, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        run_distillation(small(name, tmp_path, "epochs=3"))
    monkeypatch.setattr(ProgressBar, "advance", advance)
    again = run_distillation(small(name, tmp_path, "epochs=3"))
    assert again.name == whole.name
    left, right = read_trained_tensors(again), read_trained_tensors(whole)
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in right)
    timing = ("training_seconds", "evaluation_seconds")
    kept = [[{key: value for key, value in row.items() if key not in timing} for row in read_rows(folder)] for folder in (again, whole)]
    assert kept[0] == kept[1]


def test_a_teacher_is_trained_once_and_found_again(house, capsys):
    run_distillation(small("kd", house, "seed=5"))
    capsys.readouterr()
    run_distillation(small("sp", house, "seed=6"))
    said = capsys.readouterr().out
    assert said.count("finished already, skipped") == 1


def test_the_teacher_is_not_moved(house):
    setup = make_setup(small("hsakd", house))
    assert setup.before is not None
    folder = run_distillation(setup.before)
    taught = read_trained_tensors(folder)
    training = setup.training(setup.start, {key: value.clone() for key, value in taught.items()})
    from fedkd.distillation.student_training import Progress

    training.epoch(Progress(0, setup.start))
    assert all(torch.equal(training.teacher_tensors[key], taught[key]) for key in taught)


@pytest.mark.parametrize("name", ["kd", "fitnet", "at", "sp", "pkt", "dkd", "dpk", "information_flow", "kddg", "kd_sp"])
def test_no_method_moves_its_teacher(name, house):
    """Neither weights nor BatchNorm's statistics, and no gradient reaches it."""
    setup = make_setup(small(name, house))
    taught = read_trained_tensors(run_distillation(setup.before))
    assert any(key.endswith("running_mean") for key in taught)
    training = setup.training(setup.start, {key: value.clone() for key, value in taught.items()})
    from fedkd.distillation.student_training import Progress

    training.epoch(Progress(0, setup.start))
    assert all(torch.equal(training.teacher_tensors[key], taught[key]) and training.teacher_tensors[key].grad is None for key in taught)
    assert all(one.grad is None for one in setup.teacher.parameters())


@pytest.mark.parametrize("source", ["public_data", "synthetic"])
def test_other_images_will_do(source, house):
    more = (
        ["source.generator.width=4", "image_source.steps=2", "image_source.batch_size=16"]
        if source == "synthetic"
        else ["data@source.data=digits"]
    )
    before = run_distillation(small("kd", house, f"image_source={source}", *more))
    ended = read_rows(before)[-1]
    assert float(ended["ce"]) > 0 and float(ended["kd"]) > 0
    assert ("synthesis_oh" in ended) == (source == "synthetic")


def federation(house: Path, *overrides: str) -> Path:
    """A finished federated run."""
    from simulations.config import compose

    return runner(compose([*FEDERATION, "rounds=2", f"output={house}", *overrides]))


@pytest.fixture(scope="module")
def federated(house) -> Path:
    """One that leaves an ensemble too."""
    return federation(house, "strategy=fedensemble")


@pytest.mark.parametrize("of", ["model", "ensemble"])
def test_what_a_federation_ended_with_is_distilled(of, federated, house):
    runner = ["student=mlp", "student.widths=[8]", f"teacher_run={federated}", f"of={of}"]
    config = compose_distillation([*runner, "image_source=synthetic", "source.generator.width=4", "image_source.steps=2", "epochs=2", "image_source.batch_size=16", "progress=false",
                       f"output={house}"])  # fmt: skip
    folder = run_distillation(config)
    with open(folder / "models.csv", newline="") as file:
        teacher = next(csv.DictReader(file))
    with open(federated / "metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    if of == "model":
        assert float(teacher["accuracy"]) == pytest.approx(float(last["accuracy"]), abs=1e-12)
    else:
        assert int(teacher["parameters"]) == 4 * int(model_size(federated))
    about = json.loads((folder / "student.json").read_text())
    assert about["num_classes"] == 10 and about["network"]["widths"] == [8]


UNSEEN = ("image_source=synthetic", "source.generator.width=4", "image_source.steps=2", "image_source.batch_size=16")


def test_what_prepares_a_run_s_model_sees_no_more_than_its_student(house, tmp_path):
    """Without data, HSAKD's branches are trained on images that are made, by the model's own answers."""
    runner = federation(house, "strategy=fedavg", "model=resnet8", "model.widths=[5,6,7]", "model.stem=null")
    given = (
        f"teacher_run={runner}",
        "student=resnet8",
        "student.widths=[5,6,7]",
        "progress=false",
        "export=false",
        "epochs=2",
        f"output={tmp_path}",
    )
    config = compose_distillation([*given, *UNSEEN, "distiller=hsakd"])
    setup = make_setup(config)
    assert setup.before.source == config.source and setup.before.distiller["_target_"].endswith("HSAKDTeacher")
    folder = run_distillation(compose_distillation([*given, *UNSEEN, "distiller=hsakd"]))
    assert float(read_rows(folder)[-1]["joint"]) > 0
    sources = [OmegaConf.load(path).source["_target_"].rpartition(".")[2] for path in tmp_path.glob("*/*/config.yaml")]
    assert sources == ["Synthetic"] * 2, "nothing was trained on the run's images"
    for method, message in (
        (["distiller=hsakd_joint"], "^distiller.teaching asks for .* by hsakd_teacher: source must have labels"),
        (
            ["distiller=information_flow", "student=fedgen_cnn"],
            "^distiller.teaching asks for cifar_tiny by information_flow: init must not be alone",
        ),
        (["student_init=alone"], "^init must not be alone where a run's images are not to be seen"),
    ):
        with pytest.raises(ValueError, match=message):
            run_distillation(compose_distillation([*given[:2], *given[3:], *UNSEEN, *method]))


def test_dpk_fits_any_maps_and_a_run_may_end_in_it_as_shipped(house, tmp_path):
    from simulations.config import compose

    small = [
        "+distill_overrides={distiller.width: 8, distiller.heads: 2, distiller.depth: 1, source.steps: 2, source.batch_size: 16, source.generator.width: 4}"
    ]
    folder = runner(
        compose(
            [
                *FEDERATION,
                "rounds=2",
                "strategy=fedavg",
                "distill=dpk",
                "distill_overrides.epochs=1",
                "+distill_overrides.export=false",
                *small,
                f"output={tmp_path}",
            ]
        )
    )
    with open(folder / "distilled.csv", newline="") as file:
        assert [row["distiller"] for row in csv.DictReader(file)] == ["dpk"]
    unlike = make_setup(compose_distillation(["distiller=dpk", "distiller.stages=last", "teacher=fedgen_cnn", "student=resnet8"]))
    (prior,) = unlike.learner.method.stages
    shapes = unlike.distiller.compared(unlike_pair(unlike))
    assert len(shapes) == 1 and all(shape[1] % prior.grid == 0 for shape in shapes[0]) and prior.grid > 1


def unlike_pair(setup):
    """The two networks of a set-up, as a method sees them."""
    from fedkd.distillation.methods.base import TeacherStudent

    return TeacherStudent(setup.task, setup.learner.student, lambda: None, setup.teacher.student)


def model_size(folder: Path) -> int:
    """Parameters of a federated run's network."""
    from simulations.distillation.teachers import aggregated, config_of

    return sum(p.numel() for p in aggregated(folder, config_of(folder), "model").learner.parameters())


def test_the_student_s_program_gives_the_student_s_logits(house):
    folder = run_distillation(small("kd", house, "export=true", "seed=9"))
    program = torch.export.load(folder / "student.pt2").module()
    setup = make_setup(small("kd", house, "seed=9"))
    setup.learner.student.load_state_dict(load_file(folder / "student.safetensors"))
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(program(x), setup.learner.student.eval()(x).logits, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distiller=dpk", "batch_size=3"], r"^batch_size must be > 3 where ratio=dynamic: .* got 3$"),
        (["distiller=at", "student=fedgen_cnn"], r"^student must be a network of as many stages as the teacher, 3, .* got 2$"),
            (["distiller=fitnet", "student=mlp"], r"^student must be a network whose stages give maps \(channels, height, width\), got \[\(128,\), \(32,\)\]$"),
        (["distiller=sp", "distiller.stage=3"], r"^distiller\.stage must be a stage of the student, which has 3 .* got 3$"),
        (["distiller=hsakd_online", "student=mlp"], r"^student must be a network with an extra stage \(ResNet, .* got 'MLP'$"),
        (["distiller=online_ensemble", "student=mlp"], r"^student must be a ResNet, .* got 'MLP'$"),
        (["distiller=hsakd_teacher", "distiller.frozen=false", "image_source=public"], r"^source must have labels for distiller hsakd_teacher, .* got 'public'$"),
        (["distiller=dpk", "student=fedgen_cnn"], r"^student must be a network of as many stages as the teacher, 3, .* \(distiller\.stages=last .*\), got 2$"),
        (["distiller=information_flow", "student=fedgen_cnn"], r"^distiller\.teaching asks for cifar_tiny by information_flow: student\.widths must leave at least one pixel"),
        (["image_source=public", "data@source.data=rotated_mnist"], r"^source\.data\.data\.root must hold the files of mnist, got "),
        (["run=nowhere"], r"^run must be a run folder .* got '.*nowhere'$"),
        (["epochs=0"], r"^epochs must be >= 1, got 0$"),
        (["milestones=[0.9,0.5]"], r"^milestones must be ascending fractions of the training"),
        (["distiller.temperature=0"], r"^distiller\.temperature must be > 0, got 0"),
        (["distiller=kd_sp", "distiller.parts.kd.ce=1"], r"^distiller\.parts\.kd\.ce must be 0: the sum has the cross-entropy, got 1"),
        (["distiller=at", "distiller.power=0.5"], r"^distiller\.power must be >= 1 \(2 is the paper's\), got 0\.5$"),
        (["distiller=information_flow", "distiller.kernels=[normal]"], r"^distiller\.kernels must name one or more of cosine, .*, got \['normal'\]$"),
        (["distiller=dpk", "image_source=synthetic", "image_source.batch_size=3"], r"^batch_size must be > 3 where ratio=dynamic: .* got 3$"),
        (["student=mlp", "student_init=teacher"], r"^init must be of a network of the student's very form, got 'teacher'$"),
        (["student_init=nowhere"], r"^init must be null, teacher, alone, or the folder of a finished distillation, got '.*nowhere'$"),
        (["num_classes=11"], r"^classes must be at most the task's, 10, got 11$"),
        (["num_train_images=5"], r"^examples must be at least one and at most \d+ images of each of 10 classes, got 5$"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_trained(overrides, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_distillation(compose_distillation(["progress=false", f"output={tmp_path}", *overrides]))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_student_does_not_begin_as_another_network(house, tmp_path):
    folder = run_distillation(small("none", house))
    with pytest.raises(ValueError, match=r"^init must be of a network of the student's very form, got '.*'$"):
        run_distillation(compose_distillation(["student=mlp", f"student_init={folder}", "progress=false", f"output={tmp_path}"]))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_run_brings_its_own_data_and_teacher():
    with pytest.raises(
        ValueError, match=r"^run must be null where data or teacher are chosen: .* got 'there' with model@teacher=resnet20$"
    ):
        compose_distillation(["run=there", "teacher=resnet20"])


def test_a_teacher_of_other_classes_is_refused(house):
    folder = run_distillation(small("none", house, "num_classes=5", "num_train_images=100"))
    with pytest.raises(ValueError, match=r"^teacher must have the task's classes, 3, got 5$"):
        run_distillation(compose_distillation([f"teacher_run={folder}", "student=mlp", "num_classes=3", f"output={house}"]))


def test_a_method_that_trains_its_own_teacher_is_refused_on_a_run(house):
    folder = run_distillation(small("none", house))
    with pytest.raises(ValueError, match=r"^distiller must be one that learns from the run's model .* got 'hsakd_joint'$"):
        run_distillation(
            compose_distillation([f"teacher_run={folder}", "student=resnet8", "distiller=hsakd_joint", "progress=false", f"output={house}"])
        )


def test_a_student_may_teach_the_next(house):
    first = run_distillation(small("kd", house))
    second = run_distillation(
        compose_distillation(
            [
                f"teacher_run={first}",
                "student=mlp",
                "student.widths=[8]",
                "epochs=2",
                "steps_per_epoch=3",
                "progress=false",
                f"output={house}",
            ]
        )
    )
    with open(second / "models.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["accuracy"]) == float(read_rows(first)[-1]["accuracy"])


def test_a_run_s_teacher_has_its_name_also_where_the_method_prepares_it(house):
    folder = run_distillation(small("none", house))
    asked = [f"teacher_run={folder}", "student=resnet8", "student.widths=[5,6,7]", "batch_size=16", f"output={house}"]
    for name in ("kd", "hsakd"):
        setup = make_setup(compose_distillation([*asked, f"distiller={name}"]))
        assert setup.config.choices.teacher == "resnet8" and setup.config.teacher is None
    assert setup.before is not None and setup.taught is None


def test_an_unfinished_run_is_refused(federated, tmp_path):
    import shutil

    from fedkd.checkpoint import read_checkpoint, write_checkpoint

    copy = Path(shutil.copytree(federated, tmp_path / "run"))
    write_checkpoint(copy, read_checkpoint(copy), rounds=7)
    with pytest.raises(ValueError, match=r"^run must be finished; .*\(2 of 7 done\), got"):
        run_distillation(compose_distillation([f"teacher_run={copy}", f"output={tmp_path}"]))


def test_a_loss_that_is_no_number_stops_the_training_and_the_last_checkpoint_holds(tmp_path, monkeypatch):
    config = small("kd", tmp_path, "epochs=3")
    original = runner.Training.epoch

    def explode(self, progress):
        if progress.epoch == 1 and self.teacher is not None:
            self.taught = {key: value * (float("inf") if key.endswith("head.weight") else 1) for key, value in self.taught.items()}
        return original(self, progress)

    monkeypatch.setattr(runner.Training, "epoch", explode)
    with pytest.raises(FloatingPointError, match=r"in step 1 of epoch 2, where kd is nan: lower the learning rate$"):
        run_distillation(config)
    folder = next(path for path in (tmp_path / "distilled").iterdir() if not json.loads((path / "checkpoint.json").read_text())["finished"])
    assert json.loads((folder / "checkpoint.json").read_text())["round"] == 1
    assert all(torch.isfinite(value).all() for value in read_trained_tensors(folder).values())


def test_a_last_step_that_leads_nowhere_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    config = small("none", tmp_path, "epochs=3")
    original = runner.Training.epoch

    def overshoot(self, progress):
        progress, terms = original(self, progress)
        if progress.epoch == 2:
            progress = replace(
                progress, tensors={k: v * float("inf") if k.endswith("head.weight") else v for k, v in progress.tensors.items()}
            )
        return progress, terms

    monkeypatch.setattr(runner.Training, "epoch", overshoot)
    with pytest.raises(FloatingPointError, match=r"after the last step of epoch 2, where the test's loss is nan: lower"):
        run_distillation(config)
    (folder,) = (tmp_path / "distilled").iterdir()
    assert json.loads((folder / "checkpoint.json").read_text())["round"] == 1 == int(read_rows(folder)[-1]["epoch"])


def test_what_was_not_exported_is_when_it_is_asked_for(tmp_path, capsys):
    folder = run_distillation(small("none", tmp_path, "retrieval=true"))
    assert not (folder / "student.pt2").exists()
    assert run_distillation(small("none", tmp_path, "export=true")) == folder and "skipped" in capsys.readouterr().out
    assert (folder / "student.pt2").exists() and "precision_at_100" in (folder / "models.csv").read_text()


def test_an_auxiliary_teacher_stands_between(tmp_path, capsys):
    chain = [
        "model@student=fedgen_cnn",
        "student_init=alone",
        "distiller=information_flow",
        "distiller.layers=last",
        "distiller.teaching=[]",
    ]
    small = (
        "student=fedgen_cnn",
        "student.widths=[3,4]",
        "teacher=resnet14",
        "teacher.widths=[6,8,10]",
        "epochs=1",
        "steps_per_epoch=2",
        "batch_size=16",
    )
    config = compose_distillation(
        [*small, f"output={tmp_path}", "progress=false", "export=false", "distiller=information_flow", f"distiller.teaching={chain}"]
    )
    run_distillation(config)
    said = [line for line in capsys.readouterr().out.splitlines() if "accuracy" in line]
    assert [line.partition(" on ")[0] for line in said] == [
        "resnet14 by none", "fedgen_cnn by none", "resnet14 to fedgen_cnn by information_flow", "resnet14 to fedgen_cnn by information_flow",
    ]  # fmt: skip
    folders = list((tmp_path / "distilled").iterdir())
    assert len(folders) == 4


def test_a_federated_run_may_end_in_a_distillation(tmp_path):
    from simulations.config import compose

    tiny = [*FEDERATION, "rounds=3", "strategy=fedavg"]
    asked = (
        "distill=kd",
        "distill_every=2",
        "distill_overrides.image_source=real",
        "distill_overrides.epochs=2",
        "+distill_overrides.export=false",
        f"output={tmp_path}",
    )
    folder = runner(compose([*tiny, *asked]))
    with open(folder / "distilled.csv", newline="") as file:
        noted = list(csv.DictReader(file))
    assert [row["round"] for row in noted] == ["2", "3"] and noted[0]["folder"] != noted[1]["folder"]
    for row in noted:
        assert float(row["accuracy"]) == float(read_rows(tmp_path / "distilled" / row["folder"])[-1]["accuracy"])
    plain = runner(compose([*tiny, f"output={tmp_path / 'plain'}"]))
    assert plain.name == folder.name and (plain / "checkpoint.safetensors").read_bytes() == (folder / "checkpoint.safetensors").read_bytes()
    never = [*tiny, f"output={tmp_path / 'never'}"]
    for more, message in (
        (["distill=hsakd", "distill_overrides.student=mlp"], r"^student must be a network with an extra stage|^distiller.teaching asks"),
        (["distill=kd", "+distill_overrides.of=ensemble"], r"^distill_overrides\.of must be model for a strategy without its clients' models, got .* fedavg$"),
        (["distill=kd", "+distill_overrides.source.steps=2"], r"^distill_overrides\.source must be one value; the keys of a part stand with a dot: .*, got"),
        (["distill=kd", "+distill_overrides={source.steps: 0}"], r"^source\.steps must be > 0, got 0$"),
        (["distill=kd", "~strategy", "+strategy._target_=flwr.serverapp.strategy.FedAvg", "+strategy.fraction_evaluate=0.0"], r"^distill must be null for Flower's own strategies, which keep no state, got kd"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            runner(compose([*never, *more]))
    assert not (tmp_path / "never").exists()


def test_a_distillation_between_rounds_that_was_interrupted_is_made_up_for(tmp_path, monkeypatch):
    from simulations.config import compose
    from simulations.federation import runner

    tiny = [*FEDERATION, "rounds=3", "strategy=fedavg"]
    asked = (
        "distill=kd",
        "distill_every=2",
        "distill_overrides.image_source=real",
        "distill_overrides.epochs=1",
        "+distill_overrides.export=false",
    )
    config = [*tiny, *asked, f"output={tmp_path}"]
    distil = runner.distil

    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "distil", stop)
    with pytest.raises(KeyboardInterrupt):
        runner.run_federation(compose(config))
    monkeypatch.setattr(runner, "distil", distil)
    with open(runner.run_federation(compose(config)) / "distilled.csv", newline="") as file:
        assert [row["round"] for row in csv.DictReader(file)] == ["2", "3"]


def test_the_report_s_figures_are_the_folders_own(house, tmp_path, capsys):
    from simulations.report import main

    folders = [
        run_distillation(small(name, house, f"seed={seed}")) for name, seed in (("none", 0), ("none", 1), ("kd", 0), ("kd", 1), ("none", 2))
    ]
    capsys.readouterr()
    assert main([*map(str, folders), "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    accuracies = [float(read_rows(folder)[-1]["accuracy"]) for folder in folders]
    means = [100 * (sum(accuracies[:2]) + accuracies[4]) / 3, 50 * sum(accuracies[2:4])]
    for mean in means:
        assert f"{mean:.2f} ±" in text
    lines = text.partition("multiply-adds")[2].splitlines()[2:]
    costs = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    with open(folders[2] / "models.csv", newline="") as file:
        networks = [(f"{int(row['parameters']):,}", f"{int(row['num_macs']):,}") for row in csv.DictReader(file)]
    named = ["resnet14, teacher", "resnet8, none", "resnet14 > resnet8, kd"]
    assert [(row[0], row[1], row[2]) for row in costs] == [(name, *networks[place]) for name, place in zip(named, (0, 1, 1), strict=True)]
    assert [row[4].split()[0] for row in costs[1:]] == [f"{mean:.2f}" for mean in means]
    gain = 50 * (accuracies[2] - accuracies[0] + accuracies[3] - accuracies[1])
    assert f"{gain:+.2f} ±" in text, "of the seeds that both have"
    assert (tmp_path / "curves.pdf").exists() and (tmp_path / "report.html").exists()
    without_marks = re.sub(r"\*\*|_(?=[+\d])|(?<=\d)_", "", (tmp_path / "distillation.md").read_text())
    assert [line.replace(" ", "") for line in without_marks.splitlines() if "±" in line] == [
        line.replace(" ", "") for line in text.splitlines() if "±" in line
    ]


def test_students_of_unlike_runs_are_not_averaged_and_those_of_runs_that_differ_in_the_seed_are(house, tmp_path, capsys):
    from simulations.report import main

    def taught(run: Path, seed: int, method: str = "kd") -> Path:
        return run_distillation(compose_distillation([f"teacher_run={runner}", "student=mlp", "student.widths=[8]", f"distiller={method}", f"seed={seed}", "epochs=1", "steps_per_epoch=2",
                                 "progress=false", "export=false", f"output={house}"]))  # fmt: skip

    fedavg, other = (federation(house, "strategy=fedavg", f"seed={seed}") for seed in (0, 1))
    fedprox = federation(house, "strategy=fedprox")
    unlike = federation(house, "strategy=fedavg", "local_steps=2")
    folders = [
        taught(fedavg, 0),
        taught(other, 1),
        taught(fedprox, 0),
        taught(unlike, 0),
        taught(fedavg, 0, "none"),
        taught(fedprox, 0, "none"),
    ]
    capsys.readouterr()
    assert main([*map(str, folders), "--output", str(tmp_path)]) == 0
    said = capsys.readouterr()
    headline = said.out.partition("multiply-adds")[0].splitlines()
    found = dict(line.split("|")[1:3] for line in headline if line.startswith("| ") and "distil" not in line)
    counts = {name.strip(): n.strip() for name, n in found.items() if "mlp" in name}
    assert counts == {
        "mlp, none": "1", "fedprox's fedgen_cnn > mlp, kd": "1", "fedavg's fedgen_cnn > mlp, kd, local_steps 2": "1",
        "fedavg's fedgen_cnn > mlp, kd, local_steps 3": "2",
    }  # fmt: skip
    assert f"{folders[-1]}: the same configuration and seed as {folders[-2]}, and the same accuracy" in said.out + said.err


def test_a_baseline_has_the_same_student_and_the_same_teacher():
    """Of one name and of as many parameters: a stem that is written out is no other network, and other widths are."""
    from simulations.reports.distillation_groups import DistillationRun
    from simulations.reports.tables.distillation import matching

    def lesson(distiller: str, student: int = 100, teacher: int = 900, name: str = "resnet14", **config) -> DistillationRun:
        taught = [] if distiller == "none" else [{"network": "teacher", "accuracy": 0.5, "parameters": teacher}]
        models = pd.DataFrame([*taught, {"network": "student", "accuracy": 0.4, "parameters": student}])
        choices = {"student": "resnet8", "teacher": name, "distiller": distiller, "source": "real"}
        return DistillationRun(Path(), {"run": None, "seed": 0, "choices": choices, **config}, pd.DataFrame({"accuracy": [0.4]}), models)

    alone, kd = lesson("none", student_stem=16), lesson("kd")
    assert matching(kd, alone, "none") and matching(lesson("dpk"), kd, "kd") and not matching(kd, kd, "kd")
    assert not matching(lesson("kd", student=99), alone, "none") and not matching(lesson("kd", epochs=5), alone, "none")
    for other in (lesson("dpk", teacher=800), lesson("dpk", name="vgg13"), lesson("dpk", student=99)):
        assert not matching(other, kd, "kd")
    assert matching(lesson("dpk", teacher=800), alone, "none"), "any teacher"


def test_domains_left_out_are_set_side_by_side_with_their_mean(house, tmp_path, capsys):
    from simulations.report import main

    data = ("data=rotated_mnist", "data@data.data=digits", "data.angles=[0,30,60]", "data.examples=40", "num_train_images=null")
    folders = {
        (name, seed, place): run_distillation(small(name, house, *data, f"seed={seed}", f"data.held_out={place}", "epochs=1"))
        for name in ("none", "kd") for seed in (0, 1) for place in (0, 2)
    }  # fmt: skip
    capsys.readouterr()
    assert main([*map(str, folders.values()), "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    table = [line.split("|") for line in text[text.index("domain 0") :].splitlines()[2:4]]
    of = {key: 100 * float(read_rows(folder)[-1]["accuracy"]) for key, folder in folders.items()}
    for (_, name, n, first, second, mean, gain, *_), method in zip(table, ("none", "kd"), strict=True):
        means = [(of[method, seed, 0] + of[method, seed, 2]) / 2 for seed in (0, 1)]
        assert method in name and int(n) == 2
        for cell, values in (
            (first, [of[method, seed, 0] for seed in (0, 1)]),
            (second, [of[method, seed, 2] for seed in (0, 1)]),
            (mean, means),
        ):
            assert cell.split("±")[0].strip() == f"{sum(values) / 2:.2f}"
        alone = [(of["none", seed, 0] + of["none", seed, 2]) / 2 for seed in (0, 1)]
        assert gain.split("±")[0].strip() == ("-" if method == "none" else f"{(sum(means) - sum(alone)) / 2:+.2f}")


# ----------------------------------------------------------------------------------------------------------- the command
def command(folder: Path, *overrides: str) -> list[str]:
    """The command line of a small distillation."""
    return [sys.executable, "-m", "simulations.distill", *SMALL, f"output={folder}", *overrides]


def test_killed_at_any_moment_and_started_again_is_never_killed(tmp_path):
    long = ("distiller=dpk", *TINY["dpk"], "epochs=25", "steps_per_epoch=20")
    whole = subprocess.run(command(tmp_path / "whole", *long), check=True, capture_output=True, text=True, cwd=ROOT)
    folder = Path(whole.stdout.splitlines()[-1].removeprefix("run: "))
    there = tmp_path / "killed" / "distilled" / folder.name / "metrics.csv"
    process = subprocess.Popen(command(tmp_path / "killed", *long), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while time.monotonic() < limit and (not there.exists() or len(there.read_text().splitlines()) < 5):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 5 <= len(there.read_text().splitlines()) < 27, "it was killed in its middle"
    again = subprocess.run(command(tmp_path / "killed", *long), check=True, capture_output=True, text=True, cwd=ROOT)
    assert Path(again.stdout.splitlines()[-1].removeprefix("run: ")).name == folder.name
    assert (there.parent / "checkpoint.safetensors").read_bytes() == (folder / "checkpoint.safetensors").read_bytes()
    timing = ("training_seconds", "evaluation_seconds")
    kept = [[{key: value for key, value in row.items() if key not in timing} for row in read_rows(one)] for one in (there.parent, folder)]
    assert kept[0] == kept[1]


def test_an_error_is_a_line(tmp_path):
    done = subprocess.run(command(tmp_path, "distiller.weight=-1"), check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr == "error: distiller.weight must be >= 0 (0 switches the term off), got -1\n"


def test_a_ladder_of_teachers_is_drawn_with_its_rank_correlation(house, tmp_path, capsys):
    from scipy.stats import spearmanr

    from simulations.report import main

    teachers = (["teacher=resnet8"], ["teacher=resnet14"], ["teacher=resnet14", "teacher.widths=[5,6,7]"])
    folders = [run_distillation(small("kd", house, *teacher)) for teacher in teachers]
    capsys.readouterr()
    assert main([*map(str, folders), "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    tables = []
    for folder in folders:
        with open(folder / "models.csv", newline="") as file:
            tables.append({row["network"]: float(row["accuracy"]) for row in csv.DictReader(file)})
    rho = spearmanr([one["teacher"] for one in tables], [one["student"] for one in tables]).statistic
    assert "resnet14 widths [5, 6, 7] > resnet8, kd" in text
    columns = [cell.strip() for cell in text.partition("Spearman")[2].splitlines()[2].split("|")]
    assert columns[1:4] == ["resnet8, kd", "3", f"{rho:+.2f}"] and (tmp_path / "ladder.pdf").exists()


def test_a_learning_rate_that_is_too_large_is_an_error_that_says_where(tmp_path):
    done = subprocess.run(command(tmp_path, "distiller=none", "optimizer.lr=1e30"), check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith("error: resnet8 by none on real digits, seed 0: the loss is no longer finite in step ")
    assert first.endswith("where ce is nan: lower the learning rate")
    assert second == "The last checkpoint, if there was one by then, is on disk."
