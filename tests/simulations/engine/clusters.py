"""Ray clusters of several raylets on the loopback interface, in processes of their own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import ROOT

CLUSTER_PROCESS = """
import json, sys
from ray.cluster_utils import Cluster
quick = dict(health_check_initial_delay_ms=1000, health_check_period_ms=500)  # a lost node is noticed within seconds
given = dict(include_dashboard=False, temp_dir=sys.argv[1] + "/ray", _system_config=quick)
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=int(sys.argv[2]), **given))
nodes = []
print(cluster.address, flush=True)
for line in sys.stdin:
    word, *rest = line.split(maxsplit=1)
    if word == "add":
        nodes.append(cluster.add_node(wait=True, **json.loads(rest[0])))
    if word == "kill":
        cluster.remove_node(nodes[int(rest[0])], allow_graceful=False)
        cluster.wait_for_nodes()  # otherwise the next run would start actors on it
    print("done", flush=True)
"""


class Cluster:
    """A cluster with a head and nodes that join and die.

    Args:
        folder: a folder with a short path for Ray's files.
        head_cpus: CPUs of the head.
    """

    def __init__(self, folder: str, head_cpus: int) -> None:
        Path(folder, "ray").mkdir()  # Ray writes a file there before it makes it
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TMPDIR": folder, "RAY_DEDUP_LOGS": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER_PROCESS, folder, str(head_cpus)], env={**os.environ, **quiet, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self.num_nodes = 0

    def _tell(self, *words: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def add(self, num_cpus: int = 1, **environment: str) -> int:
        """Start a raylet whose workers have these environment variables, and return its number."""
        self._tell("add", json.dumps({"num_cpus": num_cpus, "env_vars": environment}))
        self.num_nodes += 1
        return self.num_nodes - 1

    def kill(self, number: int) -> None:
        """Kill a raylet and what it has started, and wait until the cluster has noticed."""
        self._tell("kill", str(number))


@contextmanager
def cluster(head_cpus: int) -> Iterator[Cluster]:
    """A cluster that ends with the block. Paths of its sockets are short."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        found = Cluster(folder, head_cpus)
        try:
            yield found
        finally:
            assert found.process.stdin is not None
            found.process.stdin.close()
            found.process.wait(timeout=60)


def other_code(folder: Path, module: str, old: str, new: str) -> Path:
    """A copy of fedkd's packages in which one text of a module is another one."""
    import shutil

    for name in ("fedkd", "strategies", "simulations", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    path = folder / module
    text = path.read_text()
    assert text.count(old) == 1, (module, old)
    path.write_text(text.replace(old, new))
    return folder
