"""A SuperLink and three SuperNodes as processes of this machine: FedGen gives the bits of engine=local, also after SIGKILL of a node."""

import json
import signal
from pathlib import Path

import pytest

from tests.processes import rows
from tests.simulations.deployment.federations import run_locally, same_run, strategy_options
from tests.simulations.deployment.superlink import superlink

OPTIONS = [*strategy_options("fedgen"), "num_clients=3", "clients_per_round=2", "rounds=5", "evaluation.every=5"]


def finished(runs: Path) -> list[Path]:
    """The run folders of finished runs."""
    return [path.parent for path in runs.glob("*/*/checkpoint.json") if json.loads(path.read_text())["finished"]]


@pytest.mark.slow
def test_a_supernode_that_is_killed_in_round_2_and_starts_again_changes_nothing(tmp_path):
    """Each of 18 messages starts a process that imports torch. This took 3 to 4 minutes on two cores with a load of 7 to 10."""
    from tests.simulations.deployment.federations import OPTIONS as SMALL

    with superlink(tmp_path) as link:
        for client in range(3):
            node = link.start_node(f"node_{client}", f"partition-id={client} num-partitions=3")
        words = " ".join(word for word in [*SMALL, *OPTIONS] if not word.startswith(("rounds=", "num_clients=", "strategy=")))
        link.run(f'engine="deployment" strategy="fedgen" num-server-rounds=5 num-clients=3 output="{tmp_path}/runs" overrides="{words}"')
        link.until(lambda: rows(tmp_path / "runs") >= 1, 120, "the first round")
        node.send_signal(signal.SIGKILL)
        assert node.wait() == -signal.SIGKILL
        link.start_node("node_2_again", "partition-id=2 num-partitions=3")
        link.until(lambda: bool(finished(tmp_path / "runs")), 180, "the end of the run")
    (folder,) = finished(tmp_path / "runs")
    assert same_run(folder, run_locally(tmp_path / "local", *OPTIONS))
