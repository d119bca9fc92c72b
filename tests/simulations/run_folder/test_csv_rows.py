"""Names from data in CSV files: no spreadsheet computes them, and they are read back as they are."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.types import Task
from simulations.api.run import Run
from simulations.reports.tables.table import Table, csv_text, frame, texts
from simulations.run_folder.csv_rows import append, clients_file, complete_lines, cut, escaped, unescaped, widen
from simulations.run_folder.data_record import write_data_record
from simulations.run_folder.reader import read_run
from tests.processes import ROOT
from tests.simulations.reports.folders import write_whole_run

NAMES = ("=1+1", "+cmd", "-a", "@SUM(1)", "\tx", "\rx", "'=x", "''-a", "=", "-1", "cat", "'cat")
"""Names of classes, of which some would be formulas."""


def is_formula(cell: str) -> bool:
    """A spreadsheet would compute the cell: it begins with a sign, and is no number."""
    try:
        float(cell)
        return False
    except ValueError:
        return len(cell) > 1 and cell[0] in "=+-@\t\r\n"


@settings(max_examples=200, derandomize=True, database=None)
@given(st.text(alphabet="=+-@'\t\r\na1.", max_size=5))
def test_a_text_is_no_formula_and_is_read_back(text):
    assert not is_formula(escaped(text)) and unescaped(escaped(text)) == text


@pytest.mark.parametrize("value", [-1, -0.5, None, True, "-1", "-1e-3", "+2", "-", "cat", ""])
def test_numbers_and_plain_texts_stay(value):
    assert escaped(value) is value


def cells(path: Path) -> list[str]:
    """All cells of a file."""
    with open(path, newline="", encoding="utf-8") as file:
        return [cell for row in csv.reader(file) for cell in row]


def test_files_of_a_run_hold_no_formula(tmp_path):
    folder = write_whole_run(tmp_path / "run", "fedavg", 0)
    counts = np.ones((2, len(NAMES)), int)
    write_data_record(folder, Task("data", (4,), len(NAMES), NAMES), counts, counts.sum(0), [], 1.0)
    rows = pd.read_csv(folder / "clients.csv").assign(architecture="=net").to_dict("records")
    (folder / "clients.csv").unlink()
    append(folder / "clients.csv", list(rows[0]), rows)
    widen(folder / "clients.csv", [*rows[0], "failure"])
    for name in ("classes.csv", "clients.csv"):
        assert not any(map(is_formula, cells(folder / name))), name
    run = read_run(folder)
    assert run.class_names == NAMES and set(run.clients["architecture"]) == {"=net"} == set(Run(folder).clients["architecture"])


def test_tables_of_a_report_hold_no_formula(tmp_path):
    table = Table("t", "", (texts("class", NAMES[:5]), texts("=title", NAMES[:5])))
    (tmp_path / "t.csv").write_text(csv_text(frame(table)), encoding="utf-8")
    assert not any(map(is_formula, cells(tmp_path / "t.csv")))


def test_all_writers_of_csv_files_write_such_cells():
    """Benchmarks write changed copies of files that a run has written."""
    writers = {
        path.relative_to(ROOT).as_posix(): path.read_text() for name in ("fedkd", "simulations") for path in (ROOT / name).rglob("*.py")
    }
    found = {
        name for name, text in writers.items() if any(word in text for word in (".to_csv(", "csv.writer(", "csv.DictWriter(", "savetxt("))
    }
    assert found == {"simulations/run_folder/csv_rows.py", "simulations/reports/tables/table.py", "simulations/benchmarks/report.py"}


# ---------------------------------------------------------------------------------------------------- tables of many clients
def write_rounds(path: Path, rounds: range, columns: tuple[str, ...] = ("round", "client_id", "accuracy")) -> None:
    """Append rounds of 30 clients each."""
    for number in rounds:
        append(path, columns, [{"round": number, "client_id": client, "accuracy": client / 7} for client in range(30)])


def test_a_compressed_table_has_the_rows_of_a_plain_one_however_it_grew(tmp_path):
    plain, compressed = tmp_path / "clients.csv", tmp_path / "clients.csv.gz"
    for path in (plain, compressed):
        write_rounds(path, range(1, 6))
    whole = compressed.read_bytes()
    assert complete_lines(compressed) == complete_lines(plain) and pd.read_csv(compressed).equals(pd.read_csv(plain))
    assert len(whole) < plain.stat().st_size / 2
    for path in (plain, compressed):
        cut(path, 3)
        write_rounds(path, range(4, 6))
    assert compressed.read_bytes() == whole, "a resumed run has the bytes of an uninterrupted one"
    for path in (plain, compressed):
        widen(path, ["round", "client_id", "accuracy", "failure"])
        cut(path, 4)
        append(path, [], [{"round": 5, "client_id": 1, "failure": "=died"}])
    assert complete_lines(compressed) == complete_lines(plain) and pd.read_csv(compressed).equals(pd.read_csv(plain))
    cut(compressed, 0)
    assert compressed.read_bytes() == b"" and complete_lines(compressed) == []


def test_a_kill_at_any_byte_of_a_compressed_table_loses_no_earlier_round(tmp_path):
    path = tmp_path / "clients.csv.gz"
    write_rounds(path, range(1, 3))
    kept, size = complete_lines(path), path.stat().st_size
    write_rounds(path, range(3, 4))
    whole = path.read_bytes()
    for end in range(size, len(whole)):
        path.write_bytes(whole[:end])
        assert complete_lines(path) == kept
    cut(path, 2)
    write_rounds(path, range(3, 4))
    assert path.read_bytes() == whole


def test_runs_with_many_clients_have_a_compressed_table(tmp_path):
    assert clients_file(tmp_path).name == clients_file(tmp_path, 1000).name == "clients.csv"
    assert clients_file(tmp_path, 1001).name == "clients.csv.gz"
    write_rounds(tmp_path / "clients.csv.gz", range(1, 2))
    assert clients_file(tmp_path).name == "clients.csv.gz"
