"""Reports of distillations that differ in more than their own seed, from short trainings on real digits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedkd
from fedkd.errors import RunFolderError
from simulations.distillation.runner import run_distillation
from simulations.report import main
from simulations.reports.builder import build_sections
from simulations.reports.distillation_groups import groups, read_distillation, students
from simulations.reports.distillation_section import together
from simulations.reports.figures.distillation import IMAGES_PER_CLASS
from simulations.reports.options import ReportOptions
from simulations.reports.tables.distillation import members
from simulations.reports.tables.table import NumberFormat
from simulations.run_folder.reader import find_run_folders
from tests.simulations.distillation.small_distillations import small_distillation as small


@pytest.fixture(scope="module")
def folder_of_runs(tmp_path_factory) -> Path:
    """One folder for all, so that a teacher is trained once."""
    return tmp_path_factory.mktemp("folder_of_runs")


def test_students_with_one_teacher_each_are_one_row_and_those_of_two_teachers_are_two(folder_of_runs):
    own = [read_distillation(run_distillation(small("kd", folder_of_runs, f"seed={seed}", f"teacher_seed={seed + 10}"))) for seed in (0, 1)]
    assert [[one.seed for one in same] for same in groups(own).values()] == [[0, 1]]
    again = read_distillation(run_distillation(small("kd", folder_of_runs, "seed=0", "teacher_seed=11")))
    found = groups([*own, again])
    assert sorted((name, [one.folder for one in same]) for name, same in found.items()) == [
        ("resnet14 > resnet8, KD, teacher_seed 10", [own[0].folder]),
        ("resnet14 > resnet8, KD, teacher_seed 11", [again.folder, own[1].folder]),
    ]


def test_a_row_says_how_many_of_its_seeds_diverged(folder_of_runs, tmp_path):
    teacher = ("teacher_seed=10",)
    kept = [run_distillation(small("kd", folder_of_runs, f"seed={seed}", *teacher)) for seed in (0, 1)]
    for seed, folder in enumerate(kept):
        shutil.copytree(folder, tmp_path / str(seed))
    lost = shutil.copytree(kept[0], tmp_path / "2")
    text = (lost / "config.yaml").read_text()
    (lost / "config.yaml").write_text(text.replace("\nseed: 0\n", "\nseed: 2\n"))
    header = json.loads((lost / "checkpoint.json").read_text())
    (lost / "checkpoint.json").write_text(json.dumps({**header, "finished": False}))
    (lost / "diverged.json").write_text(json.dumps({"round": 1, "client": None, "loss": "nan", "message": "x"}))
    assert main([str(tmp_path), "--no-figures"]) == 0
    report, row = tmp_path / "report", "resnet14 > resnet8, KD, 1 of 3 diverged"
    assert pd.read_csv(report / "distillation.csv").set_index("strategy")["n"].to_dict() == {row: 2}
    assert (
        "KD, 1 of 3 diverged" in (report / "report.html").read_text() and "They are in no mean" in (report / "distillation.md").read_text()
    )
    assert fedkd.load(tmp_path).summary()["num_diverged"].tolist() == [1]


def test_a_training_that_is_present_as_a_teacher_only_is_no_student(folder_of_runs):
    kind = ("teacher=resnet8", "teacher.widths=[5,6,7]")
    taught = [run_distillation(small("kd", folder_of_runs, *kind, f"seed={seed}", f"teacher_seed={seed + 10}")) for seed in (0, 1)]
    alone = [run_distillation(small("none", folder_of_runs, f"seed={seed}")) for seed in (0, 1)]
    teachers = [
        run_distillation(small("none", folder_of_runs, f"seed={seed}")) for seed in (10, 11)
    ]  # the very folders in which they were trained
    runs = [read_distillation(folder) for folder in (*taught, *alone, *teachers)]
    assert {one.folder for one in students(runs)} == {*taught, *alone}
    apart = read_distillation(run_distillation(small("none", folder_of_runs, "seed=2")))
    assert apart in students([*runs, apart]), "one more seed of the baseline is no teacher"
    assert {one.folder for one in students(runs[2:])} == {*alone, *teachers}, "without students there are no teachers"


def test_a_gain_over_kd_is_that_over_the_student_of_the_same_teacher(folder_of_runs, tmp_path):
    folders = [
        run_distillation(small(name, folder_of_runs, "teacher_seed=10", *more))
        for name, more in (("kd", ()), ("kd", ("seed=1",)), ("sp", ()), ("sp", ("seed=1",)))
    ]
    other = run_distillation(small("sp", folder_of_runs, "seed=2", "teacher_seed=12"))
    kd = run_distillation(small("kd", folder_of_runs, "seed=2", "teacher_seed=13"))
    assert main([*map(str, [*folders, other]), "--output", str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "distillation.csv").set_index("strategy")
    assert table.loc["resnet14 > resnet8, SP", "gain over KD"] == "-", "seed 2 has no student of kd"
    assert main([*map(str, [*folders, other, kd]), "--output", str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "distillation.csv").set_index("strategy")
    assert table.loc["resnet14 > resnet8, SP", "gain over KD"] == "-", "seed 2 has one of another teacher"
    assert main([*map(str, folders), "--output", str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "distillation.csv").set_index("strategy")
    mean = (
        sum(read_distillation(folder).accuracy for folder in folders[2:]) / 2
        - sum(read_distillation(folder).accuracy for folder in folders[:2]) / 2
    )
    assert float(table.loc["resnet14 > resnet8, SP", "gain over KD"]) == pytest.approx(100 * mean)


def test_networks_of_an_ensemble_stand_beside_the_same_networks_trained_alone(folder_of_runs, tmp_path):
    ensemble = [run_distillation(small("online_ensemble", folder_of_runs, f"seed={seed}", "distiller.members=2")) for seed in (0, 1)]
    narrow = [read_distillation(folder).models.set_index("network").loc["member-1"] for folder in ensemble]
    widths = ("student.stem=5", "student.widths=[2,3,3]")
    alone = [run_distillation(small("none", folder_of_runs, f"seed={seed}", *widths)) for seed in (0, 1)]
    runs = [read_distillation(folder) for folder in (*ensemble, *alone)]
    assert members(groups(runs[2:]), NumberFormat()) is None
    assert main([*map(str, (*ensemble, *alone)), "--output", str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "members.csv").set_index("network")
    row = table.loc["resnet8, Online ensemble, member-1"]
    mine, theirs = sum(one["accuracy"] for one in narrow) / 2, sum(one.accuracy for one in runs[2:]) / 2
    assert row["parameters"] == narrow[0]["num_parameters"] and row["n"] == 2
    assert row["in the ensemble"] == pytest.approx(100 * mine) and row["alone"] == pytest.approx(100 * theirs)
    assert row["gain"] == pytest.approx(100 * (mine - theirs))
    assert pd.isna(table.loc["resnet8, Online ensemble, student", "alone"]), "the widest was not trained alone"


def test_every_training_is_a_row_of_numbers(folder_of_runs, tmp_path):
    folders = [run_distillation(small("kd", folder_of_runs, f"seed={seed}", f"teacher_seed={seed + 10}")) for seed in (0, 1)]
    assert main([*map(str, folders), "--output", str(tmp_path), "--no-figures"]) == 0
    rows = pd.read_csv(tmp_path / "trainings.csv")
    runs = [read_distillation(folder) for folder in folders]
    assert list(rows["run"]) == [folder.name for folder in folders] and list(rows["teacher_seed"]) == [10, 11]
    assert list(rows["student_accuracy"]) == [one.accuracy for one in runs] and list(rows["teacher_accuracy"]) == [
        one.teacher for one in runs
    ]


def test_the_information_of_layers_is_drawn_and_written_as_it_was_measured(folder_of_runs, tmp_path):
    folders = [run_distillation(small("kd", folder_of_runs, f"seed={seed}", "layer_information_images=50")) for seed in (0, 1)]
    assert main([*map(str, folders), "--output", str(tmp_path)]) == 0
    mine = pd.read_csv(tmp_path / "flow.csv").set_index(["network", "layer", "epoch"])["information"]
    measured = [pd.read_csv(folder / "flow.csv").set_index(["network", "layer", "epoch"])["information"] for folder in folders]
    assert len(mine) == 2 * 4 * 2, "two networks, three stages and the embedding, two epochs"
    for place, value in mine.items():
        assert value == pytest.approx((measured[0][place] + measured[1][place]) / 2)
    assert (tmp_path / "flow.pdf").exists() and (tmp_path / "curves.pdf").exists()


def test_more_students_than_one_figure_tells_apart_are_drawn_in_several(folder_of_runs):
    names = ("none", "kd", "fitnet", "at", "sp", "pkt", "dkd", "kddg", "kd_sp")
    runs = [read_distillation(run_distillation(small(name, folder_of_runs))) for name in names] + [
        read_distillation(run_distillation(small("none", folder_of_runs, "epochs=3")))
    ]
    parts = [list(one) for one in together(groups(runs))]
    assert [len(one) for one in parts] == [8, 2, 1] and parts[0][0] == parts[1][0], "labels alone in each of its task"
    assert {line for part in parts for line in part} == set(groups(runs))


def test_methods_can_be_chosen_ordered_and_renamed(folder_of_runs, tmp_path):
    folders = [run_distillation(small(name, folder_of_runs)) for name in ("none", "kd", "sp")]
    given = ["--labels", "kd=KD (ours)", "--order", "SP", "--no-figures", "--output", str(tmp_path)]
    assert main([*map(str, folders), *given]) == 0
    table = pd.read_csv(tmp_path / "distillation.csv")
    assert table["strategy"].tolist() == ["resnet14 > resnet8, SP", "resnet8, no KD", "resnet14 > resnet8, KD (ours)"]
    assert "- Student: resnet8\n" in (tmp_path / "distillation.md").read_text()
    assert main([*map(str, folders), "--strategies", "kd", "--no-figures", "--output", str(tmp_path)]) == 0
    assert pd.read_csv(tmp_path / "distillation.csv")["strategy"].tolist() == ["resnet14 > resnet8, KD"]


def test_a_name_that_no_method_has_is_an_error(folder_of_runs, tmp_path, capsys):
    folder = run_distillation(small("kd", folder_of_runs))
    for given, message in (
        (("--strategies", "kdd"), "strategies must name what the report contains, got 'kdd'; did you mean 'kd'?"),
        (("--settings", "alpha 0.1"), "settings must be empty without federated runs"),
    ):
        assert main([str(folder), *given, "--output", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


def test_synthetic_images_are_drawn_from_the_file_of_the_first_seed(folder_of_runs, tmp_path):
    folders = [run_distillation(small("kd", folder_of_runs, f"seed={seed}")) for seed in (0, 1)]
    copies = [Path(shutil.copytree(folder, tmp_path / "runs" / folder.name)) for folder in folders]
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    names = np.array(["zero", "one", "two"])
    np.savez(copies[1] / "synthetic_images.npz", images=pixels, labels=np.array([0, 0, 2, 2, 2]), class_names=names)
    sections, _, _ = build_sections(find_run_folders([tmp_path / "runs"]), tmp_path, ReportOptions())
    (sheet,) = [one for one in sections[0].drawings if one.stem.name.startswith("synthetic_images")]
    assert sheet.title == "Synthetic images, resnet14 > resnet8, KD, seed 1" and sheet.stem.name == "synthetic_images"
    axes = sheet.figure().axes
    assert len(axes) == 3 * IMAGES_PER_CLASS and [axes[row * IMAGES_PER_CLASS].get_ylabel() for row in range(3)] == names.tolist()
    shown = np.array([one.images[0].get_array() for one in axes]).reshape(3, IMAGES_PER_CLASS, 8, 8)
    np.testing.assert_allclose(shown[0, :2], pixels[:2, 0] / 255)
    np.testing.assert_allclose(shown[2, :3], pixels[2:, 0] / 255)
    assert (shown[1] == 1).all() and (shown[0, 2:] == 1).all(), "white where there is no image"


@pytest.mark.parametrize(("spoil", "reason"), [
    (lambda header: {**header, "schema": 1}, "schema version 1"),
    (lambda header: {**header, "finished": False, "round": 1}, "unfinished: 1 of 2 epochs"),
    (lambda header: [], "unreadable"),
])  # fmt: skip
def test_a_distillation_that_cannot_be_reported_is_excluded_with_the_reason(folder_of_runs, tmp_path, spoil, reason):
    folder = Path(shutil.copytree(run_distillation(small("kd", folder_of_runs)), tmp_path / "run"))
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(RunFolderError, match=reason):
        read_distillation(folder)
