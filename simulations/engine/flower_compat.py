"""The only module that uses private names of Flower. Its test fails when Flower renames them."""

import logging

from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import ServerApp
from flwr.supercore.task_identity import TaskIdentity

LOST_REPLY_CODES = frozenset({
    ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED,
})  # fmt: skip
"""Codes of errors after which a message has no other reply: its node is gone, or the process that worked on it has ended."""


def set_task_identity() -> None:
    """Allow this process to create messages outside Flower's runtime, which otherwise sets run, task and node of each process."""
    if TaskIdentity._run_id is None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1


def silence_flower() -> None:
    """Hide Flower's messages of level INFO, and do not let Hydra's root logger print its messages twice."""
    logger = logging.getLogger("flwr")
    logger.propagate = False
    logger.setLevel(logging.WARNING)


def run_flower_simulation(server_app: ServerApp, client_app: ClientApp, num_nodes: int, num_actors: int) -> None:
    """Run two apps on Flower's simulation runtime. Its Python entry point is deprecated.

    Args:
        server_app: the app of the server.
        client_app: the app of the nodes.
        num_nodes: number of simulated nodes.
        num_actors: number of Ray actors that run the nodes, with one CPU each.
    """
    from flwr.simulation import run_simulation

    run_simulation(
        server_app,
        client_app,
        num_nodes,
        backend_config={
            "init_args": {"num_cpus": num_actors, "log_to_driver": False, "logging_level": "ERROR"},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
