"""Rows up to a checkpoint are proven complete: which damage is found, and what is no damage."""

import csv
import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from fedkd.errors import RunFolderError
from simulations.config import compose
from simulations.distillation.folder import DistillationFolder
from simulations.distillation.runner import run_distillation
from simulations.federation.runner import run_federation
from simulations.run_folder.completeness import check_distillation_rows, check_federated_rows
from simulations.run_folder.csv_rows import cut
from simulations.run_folder.folder import RunFolder
from tests.simulations.distillation.small_distillations import small_distillation
from tests.small_runs import SMALL


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of four rounds, of which the second and the fourth are evaluated."""
    output = tmp_path_factory.mktemp("run")
    given = ("strategy=fedavg", "rounds=4", "evaluation.every=2", "progress=false", "optimizer.lr=0.1")
    return run_federation(compose([*SMALL, *given, f"output={output}"]))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A copy of its CSV files."""
    for name in ("metrics.csv", "clients.csv"):
        shutil.copy(folder / name, tmp_path / name)
    return tmp_path


def read(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def write(path: Path, rows: list[list[str]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@pytest.mark.parametrize("done", range(5))
def test_complete_rows_pass_with_rows_of_later_rounds_and_half_a_line_behind_them(copy, done):
    check_federated_rows(copy, done, may_drop=False)
    for name in ("metrics.csv", "clients.csv"):
        with open(copy / name, "a") as file:
            file.write("5,0.1")
    check_federated_rows(copy, done, may_drop=False)


def test_every_single_row_that_is_lost_is_found(copy):
    for name in ("metrics.csv", "clients.csv"):
        whole = read(copy / name)
        for number in range(1, len(whole)):
            write(copy / name, [*whole[:number], *whole[number + 1 :]])
            with pytest.raises(RunFolderError, match=f"^output must hold all rows up to the checkpoint of round 4, got in .*{name} "):
                check_federated_rows(copy, 4, may_drop=False)
        write(copy / name, whole)


def test_rows_that_stand_twice_cells_that_are_cut_and_files_that_are_missing_are_found(copy):
    for name in ("metrics.csv", "clients.csv"):
        whole = read(copy / name)
        damaged = {
            "twice": [*whole, whole[-1]],
            "a cell less": [*whole[:-1], whole[-1][:-1]],
            "no number": [*whole[:-1], [whole[-1][0], "x,y", *whole[-1][2:]]],
            "no header": whole[1:],
            "nothing": [],
        }
        for rows in damaged.values():
            write(copy / name, rows)
            with pytest.raises(RunFolderError, match=name):
                check_federated_rows(copy, 4, may_drop=False)
        (copy / name).unlink()
        with pytest.raises(RunFolderError, match=f"got in [^:]*{name} no such file or directory; force=true"):
            check_federated_rows(copy, 4, may_drop=False)
        write(copy / name, whole)


def test_a_reason_with_a_line_break_of_unicode_is_no_damage(copy):
    whole = read(copy / "clients.csv")
    rows = [[*whole[0], "failure"], *([*row, ""] for row in whole[1:-1]), [*whole[-1], "training: one\u2028two"]]
    write(copy / "clients.csv", rows)
    check_federated_rows(copy, 4, may_drop=False)
    cut(copy / "clients.csv", 4)
    assert read(copy / "clients.csv") == rows


def test_epochs_of_a_distillation_begin_with_0(tmp_path):
    write(tmp_path / "metrics.csv", [["epoch", "test_accuracy"], ["0", "0.1"], ["1", ""], ["2", "0.3"]])
    check_distillation_rows(tmp_path, 2)
    with pytest.raises(RunFolderError, match="no row 3"):
        check_distillation_rows(tmp_path, 3)
    write(tmp_path / "metrics.csv", [["epoch", "test_accuracy"], ["1", ""], ["2", "0.3"]])
    with pytest.raises(RunFolderError, match="no row 0"):
        check_distillation_rows(tmp_path, 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, Path]:
    """A run with diagnostics and a distillation between its rounds, and a distillation that measures its layers."""
    output = tmp_path_factory.mktemp("finished")
    words = ("strategy=fedgen", "rounds=3", "generator_diagnostics_every=1", "distill=kd", "distill_every=1", "progress=false")
    student = "+distill_overrides={student: mlp, image_source: real, epochs: 1, steps_per_epoch: 1, export: false}"
    run = run_federation(compose([*SMALL, *words, student, f"output={output}"]))
    layers = run_distillation(small_distillation("none", output, "layer_information_images=20"))
    return {"generator.csv": run, "latents.csv": run, "distilled.csv": run, "flow.csv": layers}


def open_folder(folder: Path) -> None:
    """Open a run folder as a run does that goes on."""
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    config.output, key = str(folder.parents[1]), folder.name
    (RunFolder(config, key, 10) if "strategy" in config else DistillationFolder(config, key)).release()


@pytest.mark.parametrize("name", ["generator.csv", "latents.csv", "distilled.csv", "flow.csv"])
def test_a_row_that_is_lost_is_found_in_every_file_that_grows(name, finished, tmp_path):
    """Where the last checkpoint counts the row. The last checkpoint of a run comes before the distillation of its round."""
    copy = shutil.copytree(finished[name], tmp_path / finished[name].parent.name / finished[name].name)
    open_folder(copy)
    (copy / "previous_checkpoint.safetensors").unlink()
    whole = read(copy / name)
    for rows in ([whole[0], *whole[2:]], [*whole[:2], *whole[3:]], [whole[0], whole[1][:-1], *whole[2:]]):
        write(copy / name, rows)
        with pytest.raises(RunFolderError, match=f"^output must hold all rows up to the checkpoint of round ., got in .*{name} "):
            open_folder(copy)
    (copy / name).unlink()
    with pytest.raises(RunFolderError, match=name):
        open_folder(copy)
    write(copy / name, whole)
    open_folder(copy)
