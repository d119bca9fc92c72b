"""The one module that touches Flower's private names; its test fails when Flower moves them."""

import logging

from flwr.supercore.task_identity import TaskIdentity


def identify() -> None:
    """Let this process make messages outside Flower's own runtime, which tells each process its run, task and node."""
    if TaskIdentity._run_id is None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1


def quieten() -> None:
    """Flower's log lines: once, and not at level INFO (Hydra's root logger would print each again)."""
    logger = logging.getLogger("flwr")
    logger.propagate = False
    logger.setLevel(logging.WARNING)
