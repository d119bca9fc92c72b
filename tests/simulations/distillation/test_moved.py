"""Runs and data that moved: the data are found in their new place, and other data are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from fedkd.errors import ConfigError, RunFolderError
from simulations.distillation.folder import read_rows
from simulations.distillation.runner import compose_distillation, expand_words, run_distillation
from simulations.federation.model_export import export_model
from simulations.federation.trained_model import load_model
from simulations.setup.simulation import build_simulation
from tests.simulations.distillation.small_distillations import small_federation
from tests.small_runs import same_tensors

STUDENT = ("student=mlp", "student.widths=[8]", "image_source=real", "distiller=kd", "epochs=1", "progress=false", "export=false")


def write_images(root: Path, shade: int = 0) -> None:
    """A data set of two classes of single-colored images."""
    for part, number in (("train", 12), ("test", 4)):
        for label, name in enumerate(("a", "b")):
            (root / part / name).mkdir(parents=True)
            for i in range(number):
                image = np.full((8, 8), 100 * label + i + shade, np.uint8)
                Image.fromarray(image).save(root / part / name / f"{i}.png")


@pytest.fixture
def moved(tmp_path) -> tuple[Path, Path]:
    """The folder of a run and of its data, both of which were moved after the run."""
    write_images(tmp_path / "data")
    words = ("data=image_folder", f"data.root={tmp_path / 'data'}", "data.size=[8,8]", f"data.cache={tmp_path / 'cache'}")
    run = small_federation(tmp_path / "runs", *words, "model=mlp", "strategy=fedavg", "partition=iid")
    shutil.move(tmp_path / "data", tmp_path / "new" / "data")
    shutil.move(tmp_path / "runs", tmp_path / "new" / "runs")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    build_simulation.cache_clear()
    return tmp_path / "new" / "runs" / run.parent.name / run.name, tmp_path / "new" / "data"


def distill(run: Path, output: Path, *words: str) -> Path:
    return run_distillation(compose_distillation([*STUDENT, f"teacher_run={run}", f"output={output}", *words]))


def test_a_student_of_a_run_whose_data_moved(moved, tmp_path):
    run, data = moved
    with pytest.raises(ConfigError, match=r"^data.root"):
        distill(run, tmp_path / "students")
    student = distill(run, tmp_path / "students", f"data.root={data}", f"data.cache={tmp_path / 'cache2'}")
    assert len(read_rows(student)) == 2
    shutil.move(data, tmp_path / "again")
    build_simulation.cache_clear()
    grandchild = distill(student, tmp_path / "students", f"data.root={tmp_path / 'again'}", f"data.cache={tmp_path / 'cache3'}", "seed=1")
    assert len(read_rows(grandchild)) == 2, "a student of a student: the run behind it is found with the new place too"


def test_models_need_no_data(moved, tmp_path):
    """Neither for a run whose data are gone, nor for its student, finished or not, whose teacher is gone too."""
    run, data = moved
    words = (f"data.root={data}", f"data.cache={tmp_path / 'cache2'}")
    student = distill(run, tmp_path / "students", *words, "checkpoint_every=1")
    with_data = load_model(run).state_dict(), load_model(student).state_dict()
    shutil.rmtree(data)
    for cache in ("cache", "cache2"):
        shutil.rmtree(tmp_path / cache, ignore_errors=True)
    build_simulation.cache_clear()
    without_data = load_model(run).state_dict(), load_model(student).state_dict()
    assert all(same_tensors(left, right) for left, right in zip(with_data, without_data))
    assert same_tensors(load_model(run, client=1).state_dict(), load_model(run).state_dict()), (
        "FedAvg's clients begin with the global model"
    )
    assert len(export_model(run)) == 3 and load_file(run / "export" / "global_model.safetensors").keys() == without_data[0].keys()
    about = json.loads((run / "export" / "global_model.json").read_text())
    assert about["class_names"] == ["a", "b"] and about["shape"] == [3, 8, 8] and about["scale"] == 255.0
    shutil.rmtree(run)
    assert same_tensors(load_model(student).state_dict(), without_data[1])


def test_other_data_in_the_new_place_are_refused(moved, tmp_path):
    write_images(tmp_path / "other", shade=1)
    with pytest.raises(RunFolderError, match="must find the data of the run .*, got other content of test, train; data.root=FOLDER"):
        distill(moved[0], tmp_path / "students", f"data.root={tmp_path / 'other'}", f"data.cache={tmp_path / 'cache2'}")


def test_a_path_that_the_run_does_not_have_is_refused(moved, tmp_path):
    with pytest.raises(ConfigError, match="^partition.path must be a path of the run"):
        distill(moved[0], tmp_path / "students", f"data.root={moved[1]}", "partition.path=/x.npz")


def test_paths_are_new_places_only_where_a_run_is_given():
    assert expand_words(["teacher=mlp", "data.root=/x", "+partition.path=/y"])[1:] == ["data.root=/x", "+partition.path=/y"]
    places = ["data.root=/x", "partition.base.path=/y", "systems.trace=/t", "data.cache=/c"]
    others = ["teacher_run=/r", "output=/o", "data.size=[8,8]", "data.download=true"]
    assert expand_words([*others, *places, "+data.root=/z"]) == [*others, *(f"++paths.{word}" for word in (*places, "data.root=/z"))]
