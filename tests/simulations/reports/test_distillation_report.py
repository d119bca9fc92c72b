"""What a report says of distillations that differ in more than their own seed, on real trainings of real digits."""

from pathlib import Path

import pandas as pd
import pytest

from simulations.distillation.runner import run_distillation
from simulations.report import main
from simulations.reports.builder import together
from simulations.reports.distillation_groups import groups, read_distillation, students
from simulations.reports.tables.distillation import members
from tests.simulations.distillation.test_distillation import small


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """One folder for all, so that a teacher is trained once."""
    return tmp_path_factory.mktemp("house")


def test_students_of_whom_each_has_its_own_teacher_are_one_row_and_those_of_two_teachers_are_two(house):
    own = [read_distillation(run_distillation(small("kd", house, f"seed={seed}", f"teacher_seed={seed + 10}"))) for seed in (0, 1)]
    assert [[one.seed for one in same] for same in groups(own).values()] == [[0, 1]]
    again = read_distillation(run_distillation(small("kd", house, "seed=0", "teacher_seed=11")))
    found = groups([*own, again])
    assert sorted((name, [one.folder for one in same]) for name, same in found.items()) == [
        ("resnet14 > resnet8, kd, teacher_seed 10", [own[0].folder]),
        ("resnet14 > resnet8, kd, teacher_seed 11", [again.folder, own[1].folder]),
    ]


def test_a_training_that_is_there_as_a_teacher_alone_is_no_student(house):
    kind = ("teacher=resnet8", "teacher.widths=[5,6,7]")
    taught = [run_distillation(small("kd", house, *kind, f"seed={seed}", f"teacher_seed={seed + 10}")) for seed in (0, 1)]
    alone = [run_distillation(small("none", house, f"seed={seed}")) for seed in (0, 1)]
    teachers = [run_distillation(small("none", house, f"seed={seed}")) for seed in (10, 11)]  # the very folders in which they were trained
    lessons = [read_distillation(folder) for folder in (*taught, *alone, *teachers)]
    assert {one.folder for one in students(lessons)} == {*taught, *alone}
    apart = read_distillation(run_distillation(small("none", house, "seed=2")))
    assert apart in students([*lessons, apart]), "one more seed of the baseline is no teacher"
    assert {one.folder for one in students(lessons[2:])} == {*alone, *teachers}, "where nobody is taught, nobody is a teacher"


def test_a_gain_over_kd_is_that_over_the_student_of_the_same_teacher(house, tmp_path):
    folders = [
        run_distillation(small(name, house, "teacher_seed=10", *more))
        for name, more in (("kd", ()), ("kd", ("seed=1",)), ("sp", ()), ("sp", ("seed=1",)))
    ]
    other = run_distillation(small("sp", house, "seed=2", "teacher_seed=12"))
    kd = run_distillation(small("kd", house, "seed=2", "teacher_seed=13"))
    assert main([*map(str, [*folders, other]), "--output", str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "distillation.csv").set_index("strategy")
    assert table.loc["resnet14 > resnet8, sp", "less kd"] == "-", "seed 2 has no student of kd"
    assert main([*map(str, [*folders, other, kd]), "--output", str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "distillation.csv").set_index("strategy")
    assert table.loc["resnet14 > resnet8, sp", "less kd"] == "-", "seed 2 has one of another teacher"
    assert main([*map(str, folders), "--output", str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "distillation.csv").set_index("strategy")
    mean = (
        sum(read_distillation(folder).accuracy for folder in folders[2:]) / 2
        - sum(read_distillation(folder).accuracy for folder in folders[:2]) / 2
    )
    assert float(table.loc["resnet14 > resnet8, sp", "less kd"]) == pytest.approx(100 * mean)


def test_networks_of_an_ensemble_stand_beside_the_same_networks_trained_alone(house, tmp_path):
    ensemble = [run_distillation(small("online_ensemble", house, f"seed={seed}", "distiller.members=2")) for seed in (0, 1)]
    narrow = [read_distillation(folder).models.set_index("network").loc["member-1"] for folder in ensemble]
    widths = ("student.stem=5", "student.widths=[2,3,3]")
    alone = [run_distillation(small("none", house, f"seed={seed}", *widths)) for seed in (0, 1)]
    lessons = [read_distillation(folder) for folder in (*ensemble, *alone)]
    assert members(groups(lessons[2:])) is None
    assert main([*map(str, (*ensemble, *alone)), "--output", str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "members.csv").set_index("network")
    row = table.loc["resnet8, online_ensemble, member-1"]
    mine, theirs = sum(one["accuracy"] for one in narrow) / 2, sum(one.accuracy for one in lessons[2:]) / 2
    assert row["parameters"] == narrow[0]["parameters"] and row["n"] == 2
    assert row["in the ensemble"] == pytest.approx(100 * mine) and row["alone"] == pytest.approx(100 * theirs)
    assert row["gain"] == pytest.approx(100 * (mine - theirs))
    assert pd.isna(table.loc["resnet8, online_ensemble, student", "alone"]), "the widest was not trained alone"


def test_every_training_is_a_row_of_numbers(house, tmp_path):
    folders = [run_distillation(small("kd", house, f"seed={seed}", f"teacher_seed={seed + 10}")) for seed in (0, 1)]
    assert main([*map(str, folders), "--output", str(tmp_path), "--no-figures"]) == 0
    rows = pd.read_csv(tmp_path / "trainings.csv")
    lessons = [read_distillation(folder) for folder in folders]
    assert list(rows["folder"]) == [folder.name for folder in folders] and list(rows["teacher_seed"]) == [10, 11]
    assert list(rows["student"]) == [one.accuracy for one in lessons] and list(rows["teacher"]) == [one.teacher for one in lessons]


def test_what_layers_know_is_drawn_and_written_as_it_was_measured(house, tmp_path):
    folders = [run_distillation(small("kd", house, f"seed={seed}", "layer_information_images=50")) for seed in (0, 1)]
    assert main([*map(str, folders), "--output", str(tmp_path)]) == 0
    mine = pd.read_csv(tmp_path / "flow.csv").set_index(["network", "layer", "epoch"])["information"]
    measured = [pd.read_csv(folder / "flow.csv").set_index(["network", "layer", "epoch"])["information"] for folder in folders]
    assert len(mine) == 2 * 4 * 2, "two networks, three stages and the embedding, two epochs"
    for place, value in mine.items():
        assert value == pytest.approx((measured[0][place] + measured[1][place]) / 2)
    assert (tmp_path / "flow.pdf").exists() and (tmp_path / "curves.pdf").exists()


def test_more_students_than_one_figure_tells_apart_are_drawn_in_several(house):
    names = ("none", "kd", "fitnet", "at", "sp", "pkt", "dkd", "kddg", "kd_sp")
    lessons = [read_distillation(run_distillation(small(name, house))) for name in names] + [
        read_distillation(run_distillation(small("none", house, "epochs=3")))
    ]
    parts = [list(one) for one in together(groups(lessons))]
    assert [len(one) for one in parts] == [8, 2, 1] and parts[0][0] == parts[1][0], "labels alone in each of its task"
    assert {line for part in parts for line in part} == set(groups(lessons))
