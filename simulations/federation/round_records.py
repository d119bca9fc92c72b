"""Rows of a run folder's files, made from a simulation and its finished rounds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedkd.config.build import build
from fedkd.data.client_shift import Shift
from fedkd.errors import DivergedError
from fedkd.federation import serialization
from fedkd.federation.messaging import FailedReply
from fedkd.federation.server_loop import Round
from fedkd.partition.common import label_counts, write_partition
from fedkd.strategy import Strategy
from fedkd.types import LeftOut, Task
from simulations.federation.drift_records import write_phases
from simulations.run_folder.data_record import data_warnings, write_data_record, write_groups, write_task
from simulations.run_folder.folder import RunFolder
from simulations.setup.simulation import Simulation

Row = dict[str, float | str]
"""One row of a CSV file."""


def open_folder(simulation: Simulation) -> RunFolder:
    """The run folder of a simulation, locked.

    Raises:
        ConfigError: the folder cannot be written, or another process is writing it.
    """
    may_go_on = isinstance(simulation.flower_strategy, Strategy) and not simulation.phases  # phases depend on the number of rounds
    series, task = simulation.series if may_go_on else "", simulation.task
    return RunFolder(simulation.config, simulation.hash, 0 if task.target == "next_token" else task.num_classes, series)


def write_data_files(simulation: Simulation, path: Path) -> None:
    """Write ``partition.npz`` to ``path``, with the indices of every client's examples; beside it the data record.

    The server of a deployment knows the task alone.
    """
    if not simulation.holds_client_data:
        write_task(path.parent, simulation.task, simulation.train.scale)
        return
    train_labels, test_labels = (one.labels.cpu().numpy() for one in (simulation.train, simulation.client_data.local_test_pool))
    write_partition(simulation.partition, path, train_labels, test_labels, len(simulation.task.counted_names))
    write_phases(simulation, path.parent / "phases.npz")
    write_data_record(path.parent, *data_of(simulation), simulation.train.scale)
    write_groups(path.parent, simulation.partition, simulation.train, simulation.client_data.local_test_pool)


def warnings_of(simulation: Simulation) -> list[str]:
    """The warnings about the data of a run, see :func:`simulations.run_folder.data_record.data_warnings`."""
    return data_warnings(*data_of(simulation)) if simulation.holds_client_data else []


def data_of(simulation: Simulation) -> tuple[Task, np.ndarray, np.ndarray, Sequence[LeftOut]]:
    """The task, training examples by client and class [K, C], test examples by class [C], and files that are not used.

    Where examples have no single classes, C is 1.
    """
    task, views = simulation.at(simulation.config.rounds).task, simulation.client_data.views
    partition, number = simulation.partition if views is None else views.union(), len(task.counted_names)
    counts = label_counts(partition.train, simulation.train.labels.cpu().numpy(), number)
    test_counts = np.bincount(simulation.global_test.labels.cpu().numpy(), minlength=number)
    return task, counts, test_counts, simulation.train.left_out


def metrics_row(done: Round) -> dict[str, float]:
    """A round as a row of ``metrics.csv``."""
    return {
        "round": done.number,
        **{name: value for name, value in done.metrics.items() if not isinstance(value, list)},
        "uplink_bytes": done.uplink_bytes,
        "downlink_bytes": done.downlink_bytes,
        "num_failures": done.num_failures,
        "num_clients_aggregated": len(done.train_replies),
        "num_dropouts": done.num_dropouts,
        "num_missed_deadline": done.num_missed_deadline,
        "simulated_seconds": done.simulated_seconds,
        **{f"{phase}_seconds": round(value, 4) for phase, value in done.seconds.items()},
    }


def check_finite_loss(row: Mapping[str, float]) -> None:
    """Reject a round whose global model is useless.

    Args:
        row: the row of ``metrics.csv``.

    Raises:
        DivergedError: the loss on the global test set is not finite.
    """
    if not math.isfinite(loss := row.get("global_test_loss", 0.0)):
        number = int(row["round"])
        text = f"the global model diverged in round {number}: its loss on the test set must be finite, got {loss}: lower the learning rate"
        raise DivergedError(text, round=number, loss=loss)


def client_rows(simulation: Simulation, done: Round) -> list[Row]:
    """A round as rows of ``clients.csv``: the clients that were evaluated, that trained, or that failed.

    Only clients that failed have the column ``failure``: the phase and the reason of each failure.
    """
    simulation = simulation.at(done.number)
    losses = {reply.metadata.src_node_id: serialization.metrics_of(reply.content)["loss"] for reply in done.train_replies}
    counts = evaluation_counts(done)
    failures = failure_notes(done.failures)
    rows = []
    for client in sorted({*losses, *counts, *failures}):
        num_test_examples, num_correct = counts.get(client, (0, 0))
        row: Row = {
            "round": done.number,
            "client_id": client,
            "architecture": simulation.networks[client].name,
            "trained": int(client in losses),
            "num_train_examples": len(simulation.partition.train[client]),
            "num_test_examples": len(simulation.partition.test[client]),
        }
        if client in losses:
            row["train_loss"] = losses[client]
        if num_test_examples:
            row["local_test_accuracy"] = num_correct / num_test_examples
        if client in failures:
            row["failure"] = failures[client]
        rows.append(row)
    return rows


def failure_notes(failures: Mapping[str, Sequence[FailedReply]]) -> dict[int, str]:
    """``training: <reason>`` by client, with each reason once. Clients that did not fail have no entry.

    Args:
        failures: the failures of each phase.
    """
    notes: dict[int, list[str]] = {}
    for phase, failed in failures.items():
        for failure in failed:
            note = f"{phase}: {failure.line}"
            if note not in notes.setdefault(failure.client, []):
                notes[failure.client].append(note)
    return {client: "; ".join(lines) for client, lines in notes.items()}


def evaluation_counts(done: Round) -> dict[int, tuple[int, int]]:
    """The numbers of local test examples and of correct predictions, by client. Empty if the round was not evaluated."""
    counts = {}
    for reply in done.evaluate_replies:
        numbers = serialization.metrics_of(reply.content)
        counts[reply.metadata.src_node_id] = int(numbers["num-examples"]), int(numbers["num-correct"])
    clients, num_examples, num_correct = (
        done.metrics.get(name, []) for name in ("local_test_clients", "num_local_test_examples", "num_local_test_correct")
    )
    if isinstance(clients, list) and isinstance(num_examples, list) and isinstance(num_correct, list):
        counts |= {int(client): (int(total), int(correct)) for client, total, correct in zip(clients, num_examples, num_correct)}
    return counts


def shift_rows(simulation: Simulation) -> list[Row]:
    """The rows of ``shift.csv``: each client's levels of feature shift, and the fraction of its training labels that were replaced.

    There are no rows if the run has neither feature shift nor label noise.
    """
    shift = build(simulation.config, "shift")
    if not (isinstance(shift, Shift) and (shift.changes_images or shift.changes_labels)) or not simulation.holds_client_data:
        return []
    views = shift.views(simulation.config.num_clients, simulation.task.shape[0], simulation.seed / "shift")
    rows: list[Row] = []
    for client, (view, examples, indices) in enumerate(zip(views, simulation.client_data.train, simulation.partition.train)):
        replaced = (examples.labels != simulation.train.labels[indices]).double().mean().item() if len(indices) else 0.0
        rows.append({"client_id": client, **vars(view), "label_noise": replaced})
    return rows
