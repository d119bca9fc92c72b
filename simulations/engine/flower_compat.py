"""The one module that touches Flower's private names; its test fails when Flower moves them."""

import logging

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.task_identity import TaskIdentity


def identify() -> None:
    """Let this process make messages outside Flower's own runtime, which tells each process its run, task and node."""
    if TaskIdentity._run_id is None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1


def silence_flower() -> None:
    """Flower's log lines: once, and not at level INFO (Hydra's root logger would print each again)."""
    logger = logging.getLogger("flwr")
    logger.propagate = False
    logger.setLevel(logging.WARNING)


def simulate(server_app: ServerApp, client_app: ClientApp, num_nodes: int, num_actors: int) -> None:
    """Run the apps on Flower's own simulation runtime, whose Python entry point is deprecated: actors with one CPU each."""
    from flwr.simulation import run_simulation

    ray = {"num_cpus": num_actors, "log_to_driver": False, "logging_level": "ERROR"}
    backend = {"init_args": ray, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, num_nodes, backend_config=backend)
