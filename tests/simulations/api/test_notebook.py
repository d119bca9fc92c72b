"""The example of the page on the Python API, executed as a notebook: from nothing to a figure and a table."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.processes import ROOT, Command

SECTION = re.compile(r"^## Python API and callbacks\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def blocks() -> list[str]:
    """The blocks of Python code in the section."""
    section = SECTION.search((ROOT / "simulations" / "README.md").read_text(encoding="utf-8"))
    assert section, "simulations/README.md has the section"
    return re.findall(r"^```python\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)


def first() -> list[str]:
    """The lines of the first block."""
    return [line for line in blocks()[0].splitlines() if line.strip()]


def notebook(code: str) -> nbformat.NotebookNode:
    """A cell for each statement that begins a line of its own and shows something."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(line) for line in code.splitlines() if line.strip()])


def test_eight_lines_run_and_show_tables_and_figures(tmp_path):
    """In a script, which prints the types of what a notebook shows."""
    lines = [line if " = " in line.partition("(")[0] or line.startswith("import") else f"print(type({line}).__name__)" for line in first()]
    done = Command((), tmp_path, before="\n".join([*lines, "raise SystemExit(0)"]), forked=True).end()
    assert done.code == 0, done.err
    assert done.out.split()[-4:] == ["DataFrame", "DataFrame", "Figure", "Figure"]
    assert (tmp_path / "label_distribution.pdf").is_file() and list(tmp_path.rglob("metrics.csv"))


@pytest.mark.slow
def test_eight_lines_give_a_figure_and_a_table(tmp_path):
    code = "\n".join(first())
    assert len([line for line in code.splitlines() if line.strip()]) == 8
    found = notebook(code)
    NotebookClient(found, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [set(output["data"]) for cell in found.cells for output in cell["outputs"] if "data" in output]
    assert any("image/png" in data for data in shown), "a figure"
    assert any("text/html" in data for data in shown), "a table"
    assert list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize("number", range(len(blocks()) if (ROOT / "simulations" / "README.md").is_file() else 0))
def test_code_of_the_page_compiles(number):
    compile(blocks()[number], f"block {number}", "exec")
