"""The work of a client process: train or evaluate the clients of a message, and reply.

A message reaches this module in one of two forms. A grid of :mod:`simulations.engine.base` adds a record ``work`` that lists the clients of
one worker in chunks, and the states of these clients. The reply then holds the records of all of them. A message without this record is
for the one client that is hosted by the node, whose state stays in the node's context.
"""

import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedkd.errors import ConfigError, DivergedError
from fedkd.federation import serialization
from fedkd.federation.client import Client
from fedkd.federation.messaging import CLIENT_RAISED, DIVERGED
from fedkd.metrics.accuracy import NUM_CORRECT, Score
from fedkd.strategy import Strategy
from fedkd.types import State, Tensors, Update
from simulations.process import configure_process
from simulations.setup.simulation import Simulation, build_simulation, simulation_from_run_config
from strategies.fedavg import FedAvg
from strategies.fedprox import FedProx

WORK = "work"
"""Name of the record with the chunks of clients that a worker processes."""

Assignment = list[list[int]]
"""The chunks of clients that one worker processes. The clients of a chunk train as one program."""

ClientStateRecords = list[ArrayRecord | None]
"""The states of the clients of a chunk, None for clients that have not trained yet."""

WorkFunction = Callable[[Simulation, RecordDict, State | None, ClientStateRecords, list[int]], list[RecordDict]]
"""``(simulation, content, broadcast, client states, clients) -> replies``: :func:`train_chunk` or :func:`evaluate_chunk`."""


@dataclass(frozen=True)
class Work:
    """The work of one worker.

    Args:
        assignment: chunks of clients.
        config: the resolved configuration of the run as YAML.
    """

    assignment: Assignment
    config: str

    def to_record(self) -> ConfigRecord:
        """This work as a record of a message."""
        clients = [client for chunk in self.assignment for client in chunk]
        return ConfigRecord({"clients": clients, "chunks": [len(chunk) for chunk in self.assignment], "config": self.config})

    @classmethod
    def from_record(cls, record: ConfigRecord) -> "Work":
        """The work of a record that :meth:`to_record` made."""
        clients, sizes = iter(cast(list[int], record["clients"])), cast(list[int], record["chunks"])
        return cls([list(islice(clients, size)) for size in sizes], str(record["config"]))


def handle_message(message: Message, context: Context, work_function: WorkFunction) -> Message:
    """The reply of a ClientApp.

    Args:
        message: the message of the server.
        context: the context of the node, with the client's state where the node hosts one client.
        work_function: :func:`train_chunk` or :func:`evaluate_chunk`.

    Returns:
        The records of the node's client. If the message has a record ``work``, the records of all its clients, where names have the
        client in front: ``7/update``.
    """
    configure_process()
    content = message.content
    if WORK not in content:
        simulation = simulation_from_run_config(context.run_config)
        client = int(cast(int, context.node_config["partition-id"]))
        return Message(reply_of_node(simulation, content, context, work_function, client), reply_to=message)
    work = Work.from_record(content.config_records[WORK])
    names = {client: f"{client}/{serialization.CLIENT_STATE}" for chunk in work.assignment for client in chunk}
    client_states = {client: serialization.array_record(content, name) for client, name in names.items() if name in content}
    replies = run_chunks(work_function, content, work, client_states)
    records = {f"{client}/{name}": record for client, reply in replies.items() for name, record in reply.items()}
    return Message(RecordDict(records), reply_to=message)


def reply_of_node(simulation: Simulation, content: RecordDict, context: Context, work_function: WorkFunction, client: int) -> RecordDict:
    """The records of a node that hosts one client. The client's state is read from the node's context and stored there again."""
    record = context.state.array_records.get(serialization.CLIENT_STATE)
    (reply,) = work_function(simulation, content, decode_broadcast(simulation, content), [record], [client])
    if serialization.CLIENT_STATE in reply:
        context.state[serialization.CLIENT_STATE] = reply.pop(serialization.CLIENT_STATE)
    return reply


def run_chunks(
    work_function: WorkFunction, content: RecordDict, work: Work, client_states: Mapping[int, ArrayRecord]
) -> dict[int, RecordDict]:
    """Process the chunks of one worker, see :func:`process_chunks`.

    Args:
        work_function: :func:`train_chunk` or :func:`evaluate_chunk`.
        content: the content that all clients share.
        work: the chunks of clients, and the configuration.
        client_states: the states of clients that have trained before, by client.
    """
    configure_process()
    return process_chunks(build_simulation(work.config), work_function, content, work.assignment, client_states)


def process_chunks(
    simulation: Simulation,
    work_function: WorkFunction,
    content: RecordDict,
    assignment: Assignment,
    client_states: Mapping[int, ArrayRecord],
) -> dict[int, RecordDict]:
    """Process chunks of clients, one after the other.

    An exception in a chunk becomes an error record of all its clients. The failure policy of the run decides what follows. Where a client
    of a chunk diverges, its clients train once more one by one, so that only the client that diverges fails.

    Args:
        simulation: the simulation with the clients' data.
        work_function: :func:`train_chunk` or :func:`evaluate_chunk`.
        content: the content that all clients share.
        assignment: the chunks of clients.
        client_states: the states of clients that have trained before, by client.

    Returns:
        The records of each client. Clients that failed have one record ``error`` with ``code`` and ``reason``.
    """
    broadcast, replies = decode_broadcast(simulation, content), dict[int, RecordDict]()
    chunks = deque(assignment)
    while chunks:
        chunk = chunks.popleft()
        records = [client_states.get(client) for client in chunk]
        try:
            results = work_function(simulation, content, broadcast, records, chunk)
        except FloatingPointError as error:
            if len(chunk) > 1:
                chunks.extendleft([client] for client in reversed(chunk))
                continue
            loss = f"{error.loss} " if isinstance(error, DivergedError) and error.loss is not None else ""
            results = [error_reply(DIVERGED, f"{loss}{error}")]
        except Exception:
            results = [error_reply(CLIENT_RAISED, traceback.format_exc())] * len(chunk)
        replies.update(zip(chunk, results))
    return replies


def error_reply(code: int, reason: str) -> RecordDict:
    """The records of a client that failed."""
    return RecordDict({"error": ConfigRecord({"code": code, "reason": reason})})


def decode_broadcast(simulation: Simulation, content: RecordDict) -> State | None:
    """The broadcast as a state on the run's device. None for a message of one of Flower's strategies, which has no such record."""
    if serialization.BROADCAST not in content:
        return None
    return serialization.from_record(serialization.array_record(content, serialization.BROADCAST), simulation.config.device)


def train_chunk(
    simulation: Simulation, content: RecordDict, broadcast: State | None, client_states: ClientStateRecords, clients: list[int]
) -> list[RecordDict]:
    """Train the clients of a chunk, several of them as one program.

    Returns:
        For each client its update, metrics, information, and new state.
    """
    server_round = serialization.server_round_of(content)
    participants = [simulation.client(client, server_round) for client in clients]
    if broadcast is None:
        return [train_for_flower_strategy(simulation, content, client, server_round) for client in participants]
    states = [decode_client_state(record, client.device) for record, client in zip(client_states, participants)]
    begin = time.perf_counter()
    if len(participants) == 1:
        trained = [simulation.strategy.train(participants[0], broadcast, states[0], server_round)]
    else:
        trained = simulation.strategy.train_clients(participants, broadcast, states, server_round)
    seconds = (time.perf_counter() - begin) / len(participants)
    return [training_reply(update, state, seconds) for update, state in trained]


def train_for_flower_strategy(simulation: Simulation, content: RecordDict, client: Client, server_round: int) -> RecordDict:
    """Train one client for a message of one of Flower's strategies."""
    name, model, strategy = flower_strategy_parts(simulation, content)
    update, _ = strategy.train(client, {"model": model}, None, server_round)
    metrics = MetricRecord({"num-examples": update.num_examples, **update.metrics})
    return RecordDict({name: ArrayRecord(update.state["model"]), serialization.METRICS: metrics})


def training_reply(update: Update, client_state: State, seconds: float) -> RecordDict:
    """The records of a client after training.

    Args:
        update: the client's update.
        client_state: the client's new state.
        seconds: the client's share of the training time of its chunk.
    """
    return RecordDict({
        serialization.UPDATE: serialization.to_record(update.state),
        serialization.METRICS: MetricRecord({"num-examples": update.num_examples, **update.metrics}),
        serialization.CLIENT_INFO: ConfigRecord({
            "architecture": update.architecture, "num-steps": update.num_steps, "seconds": seconds, "worker": os.getpid(),
        }),
        serialization.CLIENT_STATE: serialization.to_record(client_state),
    })  # fmt: skip


def evaluate_chunk(
    simulation: Simulation, content: RecordDict, broadcast: State | None, client_states: ClientStateRecords, clients: list[int]
) -> list[RecordDict]:
    """Evaluate each client on its local test set, one after the other.

    Returns:
        For each client its metrics.
    """
    server_round, batch_size = serialization.server_round_of(content), simulation.config.evaluation.batch_size
    if broadcast is None:
        _, model, strategy = flower_strategy_parts(simulation, content)
        broadcast = {"model": model}
    else:
        strategy = simulation.strategy
    replies = []
    for record, number in zip(client_states, clients):
        client = simulation.client(number, serialization.data_round_of(content), testing=True)
        scores = strategy.evaluate(client, broadcast, decode_client_state(record, client.device), server_round, batch_size)
        replies.append(RecordDict({serialization.METRICS: score_metrics(scores)}))
    return replies


def decode_client_state(record: ArrayRecord | None, device: torch.device) -> State | None:
    """A client's state on ``device``. None before the client's first round."""
    return None if record is None else serialization.from_record(record, device)


def score_metrics(scores: Mapping[str, Score]) -> MetricRecord:
    """The scores of a client's predictions. The one of ``""`` has the names that Flower's strategies expect, ``loss`` as a mean.

    ``num-examples`` is the number of decisions that accuracy counts: examples, or next tokens, or classes of all examples.
    """
    score = scores[""]
    num_decisions = int(score.total.sum())
    return MetricRecord({
        "num-examples": num_decisions,
        "num-correct": int(score.correct.sum()),
        "loss": score.loss / max(score.num_examples, 1),
        "accuracy": score.accuracy if num_decisions else 0.0,
        **{f"{NUM_CORRECT}{name}": int(other.correct.sum()) for name, other in scores.items() if name},
    })  # fmt: skip


def client_strategy_of_flower() -> Strategy:
    """What the clients of Flower's strategies do: they train as in FedAvg."""
    return FedAvg(batchnorm="averaged", aggregation="examples", lr_schedule="constant", lr_decay=1.0, shared_layers="all")


def flower_strategy_parts(simulation: Simulation, content: RecordDict) -> tuple[str, Tensors, Strategy]:
    """How a client takes part in one of Flower's strategies: it trains as in FedAvg, or as in FedProx if the message has ``proximal-mu``.

    Returns:
        The name of the message's ArrayRecord, the model in it, and the strategy that the client follows.

    Raises:
        ConfigError: the message does not have exactly one ArrayRecord.
    """
    (name, record), *others = content.array_records.items()
    if others:
        raise ConfigError(f"a message of one of Flower's strategies must have one ArrayRecord, got {[name, *dict(others)]}")
    mu = content.config_records["config"].get("proximal-mu")
    if mu is None:
        strategy: Strategy = client_strategy_of_flower()
    else:
        strategy = FedProx(
            batchnorm="averaged", aggregation="examples", lr_schedule="constant", lr_decay=1.0, shared_layers="all",
            mu=float(cast(float, mu)), weight_decay=0.0,
        )  # fmt: skip
    return name, simulation.to_model_tensors(record), strategy
