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
from simulations.run_folder.csv_rows import append, escaped, unescaped, widen
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
