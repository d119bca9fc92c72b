"""Workers of a cluster: code, versions and data are verified, nodes are lost and join, and results have the same bits."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import TINY, Command, Ended, differing, quick, rows, until
from tests.simulations.engine.clusters import Cluster, cluster, other_code

OVERRIDES = (*TINY, "engine=ray", "output=runs", "engine.patience=60")

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
            raise ValueError("data.root must exist, got '/scratch/digits'")
        if os.environ.get("NODE_DATA") == "other":
            train.x[0] += 1
            train = type(train)(train.x, train.y, train.scale, train.mean, train.std)
        return task, train, test
'''


@pytest.fixture(scope="module")
def small() -> Iterator[Cluster]:
    """A cluster whose head has one CPU."""
    with cluster(head_cpus=1) as found:
        yield found


def run(found: Cluster, where: Path, *words: str, **environment: str) -> Ended:
    """A run on the cluster with two actors."""
    given = (*OVERRIDES, "engine.workers=2", f"engine.address={found.address}", "rounds=2", *words)
    return Command(given, where, environment, forked=True).end(timeout=120)


def on_node(found: Cluster, where: Path, *words: str, node: dict[str, str], **environment: str) -> Ended:
    """A run on the head and one other node, which is killed afterwards."""
    number = found.add(**node)
    try:
        return run(found, where, *words, **environment)
    finally:
        found.kill(number)


def test_a_node_with_other_code_is_refused_unless_the_code_is_sent(small, tmp_path):
    """With other code in its path, the node gives the bits of a local run if the driver sends its code."""
    there = other_code(tmp_path / "other", "strategies/fedprox.py", "self.mu / 2", "self.mu / 3")
    words, node = ("strategy=fedprox",), {"PYTHONPATH": str(there)}
    ended = on_node(small, tmp_path, *words, "engine.ship_code=false", node=node)
    assert ended.code == 1 and ended.out == "", ended.err
    (line,) = ended.err.splitlines()
    assert line.startswith("error: the worker on node ") and "must have the driver's code, got strategies.fedprox (" in line
    assert "engine.ship_code=true sends the driver's code" in line
    sent = on_node(small, tmp_path, *words, node=node)
    assert sent.code == 0, sent.err
    (tmp_path / "local").mkdir()
    local = quick(tmp_path / "local", *TINY, *words, "rounds=2", "output=runs", "engine=local")
    assert set(differing(sent.folder, local.folder)) == {"config.yaml"}


def test_a_node_with_another_torch_is_refused(small, tmp_path):
    (tmp_path / "site").mkdir()
    hook = "import sys\nclass Hook:\n    def find_spec(self, name, path=None, target=None):\n        pass\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(hook + "import torch\ntorch.__version__ = '2.0.1'\n")
    ended = on_node(small, tmp_path, node={"PYTHONPATH": str(tmp_path / "site")})
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert "must have the driver's torch, got 2.0.1 there and " in ended.err and "install the same version there" in ended.err


@pytest.mark.parametrize(
    ("data", "text"),
    [("missing", "cannot build the run: data.root must exist, got '/scratch/digits'"), ("other", "must have the driver's data, got train (")],
)
def test_a_node_with_other_data_is_refused(small, tmp_path, data, text):
    (tmp_path / "node_digits.py").write_text(DATA)
    words = ("data._target_=node_digits.NodeDigits", "allow_targets=[node_digits]")
    ended = on_node(small, tmp_path, *words, node={"NODE_DATA": data})
    assert ended.code == 1 and ended.err.count("\n") == 1 and text in ended.err, ended.err


def test_a_lost_node_is_survived_and_a_new_one_is_used(tmp_path):
    """One of two nodes is lost after round 20 of 60, and another one joins after round 40. The bits are those of a local run."""
    words = (*TINY, "rounds=60", "output=runs")
    with cluster(head_cpus=1) as found:
        first = found.add()
        given = (*words, "engine=ray", f"engine.address={found.address}", "engine.patience=60")
        command = Command(given, tmp_path, forked=True)
        until(lambda: rows(tmp_path) >= 20, what="row 20")
        found.kill(first)
        until(lambda: rows(tmp_path) >= 40, what="row 40")
        found.add()
        ended = command.end(timeout=120)
    assert ended.code == 0, ended.err
    assert "warning: 1 workers were lost on " in ended.err
    with open(ended.folder / "metrics.csv", newline="") as file:
        numbers = [int(row["num_workers"]) for row in csv.DictReader(file)]
    assert numbers[0] == 2 and 1 in numbers[20:]
    (tmp_path / "local").mkdir()
    local = quick(tmp_path / "local", *words, "engine=local")
    assert set(differing(ended.folder, local.folder)) == {"config.yaml"}
