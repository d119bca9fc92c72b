"""What a run says about its data: classes with their names, classes that no client holds, files that are not used."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedkd.errors import RunFolderError
from simulations.config import compose
from simulations.distillation.runner import compose_distillation, run_distillation
from simulations.federation.model_export import export_model
from simulations.federation.runner import run_federation
from simulations.reports.builder import report_folders
from simulations.reports.options import ReportOptions
from simulations.setup.simulation import build_simulation
from tests.fedkd.data.small_files import write_folder
from tests.fedkd.data.test_parquet import write_parquet
from tests.simulations.distillation.small_distillations import SMALL_FEDERATION

TINY = (*SMALL_FEDERATION, "rounds=1", "model=mlp", "strategy=fedavg", "partition=iid")


def rows(path):
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def run(tmp_path, *overrides):
    """The folder of a small run on the data in ``tmp_path/data``."""
    paths = (f"data.root={tmp_path / 'data'}", f"data.cache={tmp_path / 'cache'}", f"output={tmp_path / 'runs'}")
    return run_federation(compose([*TINY, *paths, *overrides]))


def test_the_mapping_of_labels_is_recorded_with_the_run_and_the_exported_model(tmp_path, capsys):
    write_parquet(tmp_path / "data", labels=[3, 1, 2, 1] * 5)
    folder = run(tmp_path, "data=parquet")
    found = rows(folder / "classes.csv")
    assert [(row["class"], row["name"], row["num_train_examples"], row["num_test_examples"]) for row in found] == [
        ("0", "1", "10", "10"), ("1", "2", "5", "5"), ("2", "3", "5", "5"),
    ]  # fmt: skip
    with np.load(folder / "partition.npz") as partition:
        assert [int(row["num_clients"]) for row in found] == (partition["counts"] > 0).sum(axis=0).tolist()
    assert "warning" not in capsys.readouterr().err and not (folder / "left_out.csv").exists()
    description = next(path for path in export_model(folder) if path.suffix == ".json")
    assert json.loads(description.read_text())["class_names"] == ["1", "2", "3"]


def test_names_of_classes_are_a_part_of_the_data(tmp_path, capsys):
    """Renamed classes make another run, with the same numbers, and are not taken for the data of the first one."""
    write_parquet(tmp_path / "data", labels=[0, 1] * 10, metadata={"names": "cat dog"})
    first = run(tmp_path, "data=parquet", "data.names_key=names")
    for path in (tmp_path / "data").iterdir():
        pq.write_table(pq.read_table(path).replace_schema_metadata({"names": "cat eel"}), path)
    build_simulation.cache_clear()
    second = run(tmp_path, "data=parquet", "data.names_key=names")
    assert "already finished" not in capsys.readouterr().err
    assert first != second and [row["name"] for row in rows(second / "classes.csv")] == ["cat", "eel"]
    scores = [[row["global_test_loss"] for row in rows(folder / "metrics.csv")] for folder in (first, second)]
    assert scores[0] == scores[1]
    words = ["student=mlp", "image_source=real", "epochs=1", "progress=false", "export=false", f"output={tmp_path}"]
    with pytest.raises(RunFolderError, match=r"got other content of classes; data.root=FOLDER"):
        run_distillation(compose_distillation([*words, f"teacher_run={first}"]))
    recorded = json.loads((first / "environment.json").read_text())
    del recorded["data"]["classes"]
    (first / "environment.json").write_text(json.dumps(recorded))
    assert run_distillation(compose_distillation([*words, f"teacher_run={first}"])).is_dir(), "written before names were recorded"


def test_classes_that_no_client_holds_are_named_and_not_drawn(tmp_path, capsys):
    write_parquet(tmp_path / "data", labels=[0, 2] * 10, test_labels=[0, 1, 2, 1], metadata={"names": "cat dog eel fox"})
    folder = run(
        tmp_path, "data=parquet", "data.names_key=names", "strategy=fedgen", "strategy.generator_steps=2", "generator_diagnostics_every=1"
    )
    error = capsys.readouterr().err
    assert (
        "warning: 2 of 4 classes have no training examples: 1 (dog: in the test set only, 2 examples), 3 (fox: nowhere); "
        "models do not learn them, and generators do not draw them" in error
    )
    assert [(row["name"], row["num_train_examples"]) for row in rows(folder / "classes.csv")] == [
        ("cat", "10"), ("dog", "0"), ("eel", "10"), ("fox", "0"),
    ]  # fmt: skip
    assert {row["class"] for row in rows(folder / "generator.csv")} == {"0", "2"}


def test_files_that_are_not_used_are_counted_and_listed(tmp_path, capsys):
    write_folder(tmp_path / "data", num=4, size=(8, 8))
    (tmp_path / "data/train/cat/0.png").write_bytes(b"broken")
    Image.new("RGB", (8, 8)).save(tmp_path / "data/train/stray.png")
    folder = run(tmp_path, "data=image_folder", "data.size=null", "data.skip_unreadable=true")
    error = capsys.readouterr().err
    assert "warning: 1 not used: unreadable (train/cat/0.png); left_out.csv in the run folder lists them" in error
    assert "warning: 1 not used: images outside the folders of classes (train/stray.png); left_out.csv" in error
    assert [(row["path"], row["number"]) for row in rows(folder / "left_out.csv")] == [("train/cat/0.png", "1"), ("train/stray.png", "1")]
    with np.load(folder / "partition.npz") as partition:
        assert partition["counts"].sum() == 7


def test_leaving_out_nothing_is_the_same_run(tmp_path):
    write_folder(tmp_path / "data", size=(8, 8))
    given = ("data=image_folder", "data.size=null")
    assert run(tmp_path, *given) == run(tmp_path, *given, "data.skip_unreadable=true")


@pytest.mark.parametrize("source", ["data", "run"])
def test_a_distillation_records_the_classes_and_the_files_that_are_not_used(tmp_path, source, capsys):
    write_folder(tmp_path / "data", num=6, size=(8, 8))
    Image.new("RGB", (8, 8)).save(tmp_path / "data/train/stray.png")
    given = ["data=image_folder", f"data.root={tmp_path / 'data'}", f"data.cache={tmp_path / 'cache'}", "data.size=null", "teacher=mlp"]
    if source == "run":
        given = [f"teacher_run={run(tmp_path, 'data=image_folder', 'data.size=null')}"]
        capsys.readouterr()
    small = ("student=mlp", "epochs=1", "batch_size=4", "progress=false", "export=false", f"output={tmp_path / 'students'}")
    folder = run_distillation(compose_distillation([*given, *small]))
    assert [row["name"] for row in rows(folder / "classes.csv")] == ["cat", "dog"]
    assert [row["path"] for row in rows(folder / "left_out.csv")] == ["train/stray.png"]
    assert "1 not used: images outside the folders of classes" in capsys.readouterr().err
    assert json.loads((folder / "student.json").read_text())["class_names"] == ["cat", "dog"]


def test_all_classes_of_the_digits_are_present():
    from omegaconf import OmegaConf

    task = build_simulation(OmegaConf.to_yaml(compose(list(TINY)), resolve=True)).task
    assert task.absent == () and task.present.tolist() == list(range(10))


def test_very_many_classes_run_and_are_reported(tmp_path):
    write_parquet(tmp_path / "data", labels=[*range(500)] * 2, test_labels=range(500))
    folder = run(tmp_path, "data=parquet", "strategy=fedgen", "strategy.generator_steps=2", "partition=dirichlet", "partition.alpha=0.1")
    report = report_folders([folder], ReportOptions(figures=False), output=tmp_path / "report", quiet=True)
    assert len(rows(folder / "classes.csv")) == 500
    assert "lowest tenth" in (report / "classes.csv").read_text() and "500" in (report / "report.html").read_text()
