"""A Ray cluster that is there already, and no room for actors: said within seconds, in one line, and nothing stays behind."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import ROOT, TINY, Command, differing, quick, rows, until

GIVEN = (*TINY, "rounds=20", "output=runs", "engine=ray")

KEEPER = """
import sys, ray
given = dict(include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=sys.argv[1])
address = ray.init(address="local", num_cpus=2, **given).address_info["gcs_address"]
with open(sys.argv[1] + "/ray_current_cluster", "w") as file:  # as "ray start" does, for all who ask for no address
    file.write(address)
somebody = ray.remote(num_cpus=2)(type("Somebody", (), {"there": lambda self: None}))
print(address, flush=True)
for line in sys.stdin:
    if line == "hold\\n":
        held = somebody.remote()
        ray.get(held.there.remote())
    if line == "free\\n":
        ray.kill(held)
    print(ray.available_resources().get("CPU", 0.0), flush=True)
"""


@dataclass
class Cluster:
    """A cluster of two CPUs in processes of its own, with somebody who can hold both."""

    process: subprocess.Popen
    folder: Path
    address: str = ""

    def tell(self, word: str) -> float:
        """Have it hold both CPUs, or free them; the CPUs that are free."""
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Paths of sockets are short, hence no folder of pytest's."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        (Path(folder) / "ray").mkdir()
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TMPDIR": folder}
        env = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", KEEPER, f"{folder}/ray"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        made = Cluster(process, Path(folder))
        made.address = process.stdout.readline().strip()
        yield made
        process.stdin.close()
        process.wait(timeout=30)


def refused(command: Command, message: str) -> None:
    """One line, exit code 1, and nothing left of it a moment later."""
    end = command.end(timeout=60)
    assert (end.code, end.out, end.err) == (1, "", f"error: {message}\n")
    assert not list(command.where.rglob("metrics.csv"))
    until(lambda: not command.alive(), 10, "the end of all its processes")


def patient(seconds: float) -> str:
    """What sets the time that a cluster has to find room."""
    return f"import simulations.engine.ray_cluster\nsimulations.cluster.PATIENCE = {seconds}"


def test_more_gpus_than_this_machine_has(tmp_path):
    command = Command((*GIVEN, "engine.workers=2", "engine.num_gpus=64"), tmp_path)
    end = command.end(timeout=60)
    assert end.code == 2 and end.out == "" and len(end.err.splitlines()) == 1
    assert all(words in end.err for words in ("error: engine.num_gpus must be at most ", "as 2 workers share ", " GPUs, got 64"))
    until(lambda: not command.alive(), 10, "the end of all its processes")


def test_a_cluster_that_is_too_small_is_refused_at_once(cluster, tmp_path):
    """However patient one is; and it is found through the environment."""
    command = Command((*GIVEN, "engine.workers=3"), tmp_path, {"RAY_ADDRESS": cluster.address}, patient(1000))
    refused(command, "engine.workers must fit into the cluster, which has 2 of 2 CPU free, at 1 CPU each, got 3")


def test_a_cluster_without_gpus(cluster, tmp_path):
    command = Command((*GIVEN, "engine.workers=2", "engine.num_gpus=0.5", f"engine.address={cluster.address}"), tmp_path, {}, patient(1000))
    rule = "must fit into the cluster, which has 2 of 2 CPU free, 0 of 0 GPU free, at 1 CPU and 0.5 GPU each"
    refused(command, f"engine.workers {rule}, got 2")


def test_a_cluster_that_somebody_else_uses_is_refused_when_patience_ends(cluster, tmp_path):
    assert cluster.tell("hold") == 0
    command = Command((*GIVEN, "engine.workers=2", f"engine.address={cluster.address}"), tmp_path, {}, patient(2))
    refused(command, "engine.workers must fit into the cluster, which has 0 of 2 CPU free, at 1 CPU each, got 2")
    assert cluster.tell("free") <= 2
    until(lambda: cluster.tell("") == 2, 10, "room in the cluster")


def test_nobody_at_the_address(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = time.monotonic()
    for address in (f"127.0.0.1:{port}", "nonsense"):
        end = quick(tmp_path, *GIVEN, f"engine.address={address}")
        assert end.code == 2 and end.out == "" and len(end.err.splitlines()) == 1
        rule = "engine.address (or RAY_ADDRESS) must be that of a Ray cluster that answers"
        assert end.err.startswith(f"error: {rule}, got '{address}': "), end.err
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_run_on_a_cluster_gives_back_what_it_held(cluster, tmp_path):
    """Ended by a scheduler in its middle, and gone on with to its end; the files are those of one run in one process."""
    command = Command((*GIVEN, "engine.workers=2", f"engine.address={cluster.address}"), tmp_path)
    until(lambda: rows(tmp_path) >= 2, what="the second row")
    assert cluster.tell("") == 0
    command.kill(signal.SIGTERM)
    assert command.end(timeout=20).code == -15
    until(lambda: cluster.tell("") == 2, 15, "room in the cluster")
    ended = Command((*GIVEN, "engine.workers=2", f"engine.address={cluster.address}"), tmp_path).end()
    assert ended.code == 0, ended.err
    until(lambda: cluster.tell("") == 2, 15, "room in the cluster")
    (tmp_path / "alone").mkdir()
    assert list(differing(ended.folder, quick(tmp_path / "alone", *GIVEN, "engine=local").folder)) == ["config.yaml"]


@pytest.mark.slow
def test_without_an_address_a_cluster_on_this_machine_is_left_alone(cluster, tmp_path):
    """Ray by itself would join whichever was started last."""
    assert cluster.tell("hold") == 0
    command = Command((*GIVEN, "engine.workers=2", "rounds=1"), tmp_path, {"RAY_TMPDIR": str(cluster.folder)}, patient(1000))
    assert command.end(timeout=60).code == 0
    cluster.tell("free")
    until(lambda: cluster.tell("") == 2, 10, "room in the cluster")
