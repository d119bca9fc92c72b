"""Rows up to a checkpoint are proven complete: which damage is found, and what is no damage."""

import csv
import shutil
from pathlib import Path

import pytest

from fedkd.errors import RunFolderError
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.run_folder.completeness import check_distillation_rows, check_federated_rows
from simulations.run_folder.csv_rows import cut
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
