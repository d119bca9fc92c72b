"""Small deployments: a ServerApp and SuperNodes in one process, and the same runs with ``engine=local``."""

from pathlib import Path

from flwr.app import Context, RecordDict

from fedkd.checkpoint import read_checkpoint
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.flower_app import client_app, server_app
from tests.processes import metrics
from tests.simulations.engine.fake_nodes import FakeNodes
from tests.small_runs import same_tensors, strategy_overrides

OPTIONS = (
    "num_clients=6", "clients_per_round=4", "rounds=3", "local_steps=3", "batch_size=16", "clients_per_vmap=1", "progress=false",
)  # fmt: skip

NODES = {7: {"partition-id": 0}, 8: {"clients": "1,4"}, 9: {"clients": "2, 3,5"}}
"""Three SuperNodes with six clients."""

COSTS = ("local_training_seconds", "server_seconds", "evaluation_seconds")


def three_nodes(fate=lambda message: "answered", configs=None) -> FakeNodes:
    """The nodes of :data:`NODES`."""
    return FakeNodes(client_app, configs or NODES, fate)


def deploy(nodes: FakeNodes, output: Path, *options: str, **run_config: object) -> Path:
    """Run the ServerApp on these nodes, and return the run folder."""
    words = " ".join([*OPTIONS, f"output={output}", *options])
    config = {"engine": "deployment", "overrides": words, **run_config}
    server_app(nodes, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config))
    return max((output / "digits").glob("*/checkpoint.json"), key=lambda path: path.stat().st_mtime_ns).parent


def run_locally(output: Path, *options: str) -> Path:
    """The folder of the same run with ``engine=local``."""
    return run_federation(compose([*OPTIONS, f"output={output}", "engine=local", *options]))


def strategy_options(name: str) -> list[str]:
    """The overrides of a small run of a strategy."""
    return [f"strategy={name}", *strategy_overrides(name)]


def same_run(deployed: Path, local: Path, without: tuple[str, ...] = ()) -> bool:
    """Whether the server's state and all columns but times are equal. Columns of the global test may be missing in a deployment."""
    ours, theirs = read_checkpoint(deployed), read_checkpoint(local)
    left, right = metrics(deployed), metrics(local)
    shared = [name for name in right if not name.startswith("global_test") and name not in (*COSTS, *without)]
    return same_tensors(ours.state, theirs.state) and left[shared].equals(right[shared])
