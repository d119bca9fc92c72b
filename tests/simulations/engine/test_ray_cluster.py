"""Existing Ray clusters, and clusters without free resources: an error of one line within seconds, and no process is left."""

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

OVERRIDES = (*TINY, "rounds=20", "output=runs", "engine=ray")


CLUSTER_PROCESS = """
import sys, ray
given = dict(include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=sys.argv[1])
address = ray.init(address="local", num_cpus=2, **given).address_info["gcs_address"]
with open(sys.argv[1] + "/ray_current_cluster", "w") as file:  # as "ray start" does for programs without an address
    file.write(address)
holder = ray.remote(num_cpus=2)(type("Holder", (), {"ping": lambda self: None}))
print(address, flush=True)
for line in sys.stdin:
    if line == "hold\\n":
        actor = holder.remote()
        ray.get(actor.ping.remote())
    if line == "free\\n":
        ray.kill(actor)
    print(ray.available_resources().get("CPU", 0.0), flush=True)
"""


@dataclass
class Cluster:
    """A cluster with two CPUs in separate processes, and an actor that can hold both."""

    process: subprocess.Popen
    folder: Path
    address: str = ""

    def tell(self, word: str) -> float:
        """Hold both CPUs (``hold``) or free them (``free``), and return the number of free CPUs."""
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster whose files are not in pytest's folder, as paths of sockets must be short."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        (Path(folder) / "ray").mkdir()
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TMPDIR": folder}
        env = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER_PROCESS, f"{folder}/ray"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        cluster = Cluster(process, Path(folder))
        cluster.address = process.stdout.readline().strip()
        yield cluster
        process.stdin.close()
        process.wait(timeout=30)


def assert_refused(command: Command, number: int, room: str) -> None:
    """Check that a command has no room for a number of actors: it ends with one line and exit code 2, and no process is left."""
    end = command.end(timeout=60)
    assert (end.code, end.out) == (2, ""), end.err
    begin = f"error: engine.workers must start on the cluster within engine.patience=1 seconds, got {number}, of which "
    assert end.err.startswith(begin) and end.err.endswith(f" started. The cluster had {room} each\n"), end.err
    assert not list(command.where.rglob("metrics.csv"))
    until(lambda: not command.alive(), 10, "the end of all processes")


def test_more_gpus_than_the_machine_has(tmp_path):
    command = Command((*OVERRIDES, "engine.workers=2", "engine.num_gpus=64"), tmp_path, forked=True)
    end = command.end(timeout=60)
    assert end.code == 2 and end.out == "" and len(end.err.splitlines()) == 1
    assert all(words in end.err for words in ("error: engine.num_gpus must be at most ", "as 2 workers share ", " GPUs, got 64"))
    until(lambda: not command.alive(), 10, "the end of all processes")


def test_cluster_that_is_too_small(cluster, tmp_path):
    """The address is taken from the environment."""
    command = Command((*OVERRIDES, "engine.workers=3", "engine.patience=1"), tmp_path, {"RAY_ADDRESS": cluster.address}, forked=True)
    assert_refused(command, 3, "2 of 2 CPU free, at 1 CPU")


def test_cluster_without_gpus(cluster, tmp_path):
    command = Command(
        (*OVERRIDES, "engine.workers=2", "engine.num_gpus=0.5", "engine.patience=1", f"engine.address={cluster.address}"),
        tmp_path,
        forked=True,
    )
    assert_refused(command, 2, "2 of 2 CPU free, 0 of 0 GPU free, at 1 CPU and 0.5 GPU")


def test_cluster_in_use(cluster, tmp_path):
    assert cluster.tell("hold") == 0
    command = Command((*OVERRIDES, "engine.workers=2", "engine.patience=1", f"engine.address={cluster.address}"), tmp_path, forked=True)
    assert_refused(command, 2, "0 of 2 CPU free, at 1 CPU")
    assert cluster.tell("free") <= 2
    until(lambda: cluster.tell("") == 2, 10, "free resources in the cluster")


def test_no_cluster_at_the_address(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = time.monotonic()
    for address in (f"127.0.0.1:{port}", "nonsense"):
        end = quick(tmp_path, *OVERRIDES, f"engine.address={address}")
        assert end.code == 2 and end.out == "" and len(end.err.splitlines()) == 1
        rule = "engine.address (or RAY_ADDRESS) must be that of a Ray cluster that answers"
        assert end.err.startswith(f"error: {rule}, got '{address}': "), end.err
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_run_releases_the_cluster(cluster, tmp_path):
    """A run that is terminated and resumed has the files of one run in a single process."""
    command = Command((*OVERRIDES, "engine.workers=2", f"engine.address={cluster.address}"), tmp_path, forked=True)
    until(lambda: rows(tmp_path) >= 2, what="the second row")
    assert cluster.tell("") == 0
    command.kill(signal.SIGTERM)
    assert command.end(timeout=20).code == -15
    until(lambda: cluster.tell("") == 2, 15, "free resources in the cluster")
    ended = quick(tmp_path, *OVERRIDES, "engine.workers=2", f"engine.address={cluster.address}")
    assert ended.code == 0, ended.err
    until(lambda: cluster.tell("") == 2, 15, "free resources in the cluster")
    (tmp_path / "alone").mkdir()
    assert list(differing(ended.folder, quick(tmp_path / "alone", *OVERRIDES, "engine=local").folder)) == ["config.yaml"]


@pytest.mark.slow
def test_run_without_address_ignores_local_clusters(cluster, tmp_path):
    """Ray itself would connect to the cluster that was started last."""
    assert cluster.tell("hold") == 0
    command = Command((*OVERRIDES, "engine.workers=2", "rounds=1"), tmp_path, {"RAY_TMPDIR": str(cluster.folder)})
    assert command.end(timeout=60).code == 0
    cluster.tell("free")
    until(lambda: cluster.tell("") == 2, 10, "free resources in the cluster")
