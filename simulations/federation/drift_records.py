"""What a run with drift records in addition: its phases, accuracy by task, and the accuracy on the data of the next round."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType
from torch import Tensor

from fedkd.federation import serialization
from fedkd.federation.messaging import collect_replies, start_sending
from fedkd.federation.server_loop import Round
from fedkd.files import write_atomically
from fedkd.types import Output
from simulations.engine.base import ClientGrid
from simulations.setup.evaluation import ensemble_local_metrics
from simulations.setup.simulation import Simulation

Model = Callable[[Tensor], Output]
CLASS_ACCURACY = "global_test_accuracy_class_"


def write_phases(simulation: Simulation, path: Path) -> None:
    """Write ``phases.npz``, where the run has phases: what each client holds in each of them.

    ``first_round`` [P] is the first round of each phase, ``views`` [P, K] the view of each client, ``counts`` and ``test_counts``
    [P, K, C] the numbers of training and local test examples by class, as the clients label them, and ``task`` [C] the number of the
    task with which each class arrives, -1 where there are none.
    """
    if not simulation.phases:
        return
    task = np.full(simulation.task.num_classes, -1)
    for number, phase in enumerate(simulation.phases):
        task[list(phase.task)] = number
    simulations = [simulation.at(phase.first_round) for phase in simulation.phases]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        first_round=np.array([phase.first_round for phase in simulation.phases]),
        views=np.array([phase.views for phase in simulation.phases]),
        counts=np.stack([held(one, "train") for one in simulations]),
        test_counts=np.stack([held(one, "local_test") for one in simulations]),
        task=task,
    )
    write_atomically(path, content.getvalue())


def held(simulation: Simulation, part: str) -> np.ndarray:  # [K, C], int64
    """The numbers of examples of each class of each client, in the part ``train`` or ``local_test`` of its data."""
    classes = simulation.task.num_classes
    return np.stack([examples.y.bincount(minlength=classes).cpu().numpy() for examples in getattr(simulation.client_data, part)])


def start_next_test(
    simulation: Simulation, grid: ClientGrid, server_round: int, arrays: ArrayRecord
) -> Callable[[Model | None], dict[str, float]]:
    """Start to test a round's model on the local test sets of the next round, where the next round is another phase.

    Args:
        simulation: the simulation of the round.
        grid: the grid of clients.
        server_round: 1, 2, ...
        arrays: the state after ``aggregate``.

    Returns:
        A function that waits for the result. It is given the ensemble that is tested in place of the clients' models, or None. The result
        is ``prequential_accuracy``, 0..1, and empty within a phase.
    """
    later, strategy = simulation.at(server_round + 1), simulation.strategy
    if server_round == simulation.config.rounds or later is simulation:
        return lambda ensemble: {}
    messages: list[Message] = []
    if strategy.clients_evaluate:
        content = strategy.broadcast_content(arrays, server_round)
        content["config"] = ConfigRecord({"server-round": server_round, "data-round": server_round + 1})
        clients = later.evaluated_clients(server_round + 1)
        messages = [Message(content, message_type=MessageType.EVALUATE, dst_node_id=client) for client in clients]
    timeout = simulation.config.timeout
    pending = start_sending(grid, messages, timeout)

    def wait(ensemble: Model | None) -> dict[str, float]:
        if ensemble is not None:
            value = ensemble_local_metrics(later, ensemble, server_round + 1).get("local_test_accuracy")
            return {"prequential_accuracy": value} if isinstance(value, float) else {}
        replies, _ = collect_replies(grid, messages, timeout, server_round, later.own_federation, pending)
        counts = [serialization.metrics_of(reply.content) for reply in replies]
        total, correct = (sum(int(numbers[name]) for numbers in counts) for name in ("num-examples", "num-correct"))
        return {"prequential_accuracy": correct / total} if total else {}

    return wait


def drift_metrics(simulation: Simulation, done: Round) -> dict[str, float]:
    """Further columns of a round with drift.

    ``prequential_accuracy`` is the accuracy on the local test sets of the next round, which within a phase are those of this round. Where
    classes arrive as tasks, ``seen_classes_accuracy`` is the accuracy of the global model on the test examples of all tasks so far.
    """
    found: dict[str, float] = {}
    if simulation.phases and done.number < simulation.config.rounds:
        value = done.metrics.get("prequential_accuracy", done.metrics.get("local_test_accuracy"))
        found |= {"prequential_accuracy": value} if isinstance(value, int | float) else {}
    rows = task_rows(simulation, done)
    total = sum(row["num_test_examples"] for row in rows)
    return found | ({"seen_classes_accuracy": sum(row["num_correct"] for row in rows) / total} if total else {})


def task_rows(simulation: Simulation, done: Round) -> list[dict[str, int]]:
    """A round as rows of ``tasks.csv``: the global model on the test examples of each task that has arrived, among all classes.

    There are no rows where classes do not arrive as tasks, or in a round without a test of the global model.
    """
    current = simulation.at(done.number).phase
    totals = torch.bincount(simulation.global_test.labels.cpu(), minlength=simulation.task.num_classes).tolist()
    rows = []
    for number, phase in enumerate(simulation.phases[: current + 1]):
        names = {label: f"{CLASS_ACCURACY}{label:02d}" for label in phase.task if totals[label]}
        if names and all(name in done.metrics for name in names.values()):
            correct = sum(round(float(str(done.metrics[name])) * totals[label]) for label, name in names.items())
            total = sum(totals[label] for label in names)
            rows.append({"round": done.number, "task": number, "num_test_examples": total, "num_correct": correct})
    return rows
