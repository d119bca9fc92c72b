"""The example of the page on the Python API, executed as a notebook: from nothing to a figure and a table."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.processes import ROOT

SECTION = re.compile(r"^## Python API and callbacks\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def blocks() -> list[str]:
    """The blocks of Python code in the section."""
    section = SECTION.search((ROOT / "simulations" / "README.md").read_text(encoding="utf-8"))
    assert section, "simulations/README.md has the section"
    return re.findall(r"^```python\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)


def notebook(code: str) -> nbformat.NotebookNode:
    """A cell for each statement that begins a line of its own and shows something."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(line) for line in code.splitlines() if line.strip()])


def test_eight_lines_give_a_figure_and_a_table(tmp_path):
    code = blocks()[0]
    assert len([line for line in code.splitlines() if line.strip()]) == 8
    found = notebook(code)
    NotebookClient(found, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [set(output["data"]) for cell in found.cells for output in cell["outputs"] if "data" in output]
    assert any("image/png" in data for data in shown), "a figure"
    assert any("text/html" in data for data in shown), "a table"
    assert list(tmp_path.rglob("metrics.csv"))


def test_the_logger_of_the_page_logs_every_round(tmp_path, monkeypatch):
    """The package wandb is replaced by one that notes what it is given."""
    import sys
    from types import SimpleNamespace

    import fedkd
    from tests.simulations.api.conftest import SMALL

    (code,) = [block for block in blocks() if "import wandb" in block]
    logged: list = []
    session = SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda exit_code: logged.append(exit_code))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: logged.append(given) or session))
    monkeypatch.setattr(fedkd, "run", lambda *words, **keys: None)
    names: dict = {}
    exec(code, names)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: logged.append(given) or session))
    (run,) = fedkd.run(strategy="fedavg", callbacks=[names["WandbLogger"]()], output=str(tmp_path), **SMALL)
    begin, *rounds, end = logged
    assert begin["config"]["strategy"]["_target_"] == "strategies.fedavg.FedAvg" and end == 0
    assert [(step, values["global_test_accuracy"]) for step, values in rounds] == list(zip([1, 2, 3], run.metrics["global_test_accuracy"]))


@pytest.mark.parametrize("number", range(len(blocks()) if (ROOT / "simulations" / "README.md").is_file() else 0))
def test_code_of_the_page_compiles(number):
    compile(blocks()[number], f"block {number}", "exec")
