"""Workers of a cluster: code, versions and data are verified, nodes are lost and join, and results have the same bits."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import TINY, Command, Ended, differing, quick, rows, until
from tests.simulations.engine.clusters import Cluster, cluster, other_code

OVERRIDES = (*TINY, "engine=ray", "output=runs", "engine.patience=150")

WITHOUT_FEDKD = """
import os, sys
given = os.environ["PYTHONPATH"].split(os.pathsep)
sys.path = [path for path in sys.path if path in given or not os.path.isdir(os.path.join(path, "simulations"))]
"""
"""A module that Python reads at its start. It takes an installed fedkd away, and leaves code that Ray has brought."""

DATA = '''
import os
from dataclasses import dataclass
from fedkd.data.digits import Digits

@dataclass(frozen=True, kw_only=True)
class NodeDigits(Digits):
    """Digits of which each node may have others."""

    def __call__(self):
        task, train, test = super().__call__()
        if os.environ.get("NODE_DATA") == "missing":
            raise ValueError("root must exist, got '/scratch/digits'")
        if os.environ.get("NODE_DATA") == "other":
            train.x[0] += 1
            train = type(train)(train.x, train.y, train.scale, train.mean, train.std)
        return task, train, test
'''


@pytest.fixture(scope="module")
def small() -> Iterator[Cluster]:
    """A cluster whose head has no room for actors."""
    with cluster(head_cpus=0) as found:
        yield found


def run(found: Cluster, where: Path, *words: str, **environment: str) -> Ended:
    """A run on the cluster with one actor."""
    given = (*OVERRIDES, "engine.workers=1", f"engine.address={found.address}", "rounds=2", *words)
    return Command(given, where, environment, forked=True).end(timeout=200)


def on_node(found: Cluster, where: Path, *words: str, node: dict[str, str], **environment: str) -> Ended:
    """A run on one node, which is killed afterwards."""
    number = found.add(**node)
    try:
        return run(found, where, *words, **environment)
    finally:
        found.kill(number)


def error_line(ended: Ended) -> str:
    """The error of a run that was refused. Lines about a long wait and about modules may precede it."""
    assert ended.code == 1 and ended.out == "", ended.err
    (line,) = [line for line in ended.err.splitlines() if not line.startswith(("waiting up to ", "note: "))]
    assert line.startswith("error: the worker on node "), line
    return line


@pytest.mark.slow
def test_nodes_with_other_code_and_without_code_are_refused_unless_the_code_is_sent(small, tmp_path):
    """Then they give the bits of a local run together."""
    there = other_code(tmp_path / "other", "strategies/fedgen.py", "self.coefficient_decay ** (server_round - 1)", "1.5")
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT_FEDKD)
    with_other, without = {"PYTHONPATH": str(there)}, {"PYTHONPATH": str(tmp_path / "without")}
    line = error_line(on_node(small, tmp_path, "engine.ship_code=false", node=with_other))
    assert "must have the driver's code, got strategies.fedgen (" in line
    assert "engine.ship_code=true sends the driver's code" in line
    ended = on_node(small, tmp_path, "engine.ship_code=false", node=without)
    assert ended.code == 1 and len([line for line in ended.err.splitlines() if line.startswith("error: ")]) == 1, ended.err
    assert "a worker cannot import the code of the run: No module named 'simulations'" in ended.err, ended.err
    number = small.add(**without)
    try:
        sent = on_node(small, tmp_path, "engine.workers=2", node=with_other)
    finally:
        small.kill(number)
    assert sent.code == 0, sent.err
    (tmp_path / "local").mkdir()
    local = quick(tmp_path / "local", *TINY, "rounds=2", "output=runs", "engine=local")
    assert set(differing(sent.folder, local.folder)) == {"config.yaml"}
    assert len(json.loads((sent.folder / "environment.json").read_text())["workers"]) == 2


@pytest.mark.slow
def test_a_node_with_another_torch_is_refused(small, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import torch\ntorch.__version__ = '2.0.1'\n")
    ended = on_node(small, tmp_path, node={"PYTHONPATH": str(tmp_path / "site")})
    assert "must have the driver's torch, got 2.0.1 there and " in (line := error_line(ended)) and "install the same version there" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("missing", "cannot build the run: data.root must exist, got '/scratch/digits'"),
        ("other", "must have the driver's data, got train ("),
    ],
)
def test_a_node_with_other_data_is_refused(small, tmp_path, data, text):
    (tmp_path / "node_digits.py").write_text(DATA)
    words = ("data._target_=node_digits.NodeDigits", "allow_targets=[node_digits]")
    ended = on_node(small, tmp_path, *words, node={"NODE_DATA": data})
    assert text in error_line(ended)


def test_a_lost_node_is_survived_and_a_new_one_is_used(tmp_path):
    """One of two nodes is lost after round 20 of 60, and another one joins after round 40. The bits are those of a local run."""
    words = (*TINY, "rounds=60", "output=runs")
    with cluster(head_cpus=1) as found:
        first = found.add()
        given = (*words, "engine=ray", f"engine.address={found.address}", "engine.patience=150")
        command = Command(given, tmp_path, forked=True)
        until(lambda: rows(tmp_path) >= 20, what="row 20")
        found.kill(first)
        until(lambda: rows(tmp_path) >= 40, what="row 40")
        found.add()
        ended = command.end(timeout=200)
    assert ended.code == 0, ended.err
    assert "warning: workers were lost on " in ended.err
    with open(ended.folder / "metrics.csv", newline="") as file:
        numbers = [int(row["num_workers"]) for row in csv.DictReader(file)]
    assert numbers[0] == 2 and 1 in numbers[20:]
    (tmp_path / "local").mkdir()
    local = quick(tmp_path / "local", *words, "engine=local")
    assert set(differing(ended.folder, local.folder)) <= {"config.yaml", "ray.log"}
    nodes = json.loads((ended.folder / "environment.json").read_text())["workers"]
    assert len(nodes) >= 2 and all(len(node["code"]) == 16 and node["versions"]["torch"] for node in nodes)
