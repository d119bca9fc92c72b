"""ClientApps for the nodes of Flower's simulation runtime, one client per node.

The apps stand in a module of their own, because Flower pickles everything of ``__main__`` with every task. Their processes have the same
settings as fedkd's own workers.
"""

import os
from typing import cast

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from simulations.engine.client_work import WorkFunction, evaluate_chunk, reply_of_node, train_chunk
from simulations.process import configure_process
from simulations.setup.simulation import build_simulation

CONFIG = "FEDKD_BENCHMARK_CONFIG"
"""Environment variable with the configuration as YAML. ``Context.run_config`` is empty in Flower's simulation."""

single_app = ClientApp()
"""Trains and evaluates the one client of the node."""

echo_app = ClientApp()
"""Returns the received arrays without any work."""


def client_of(context: Context) -> int:
    """The client that the node hosts, 0..N-1."""
    return int(cast(int, context.node_config["partition-id"]))


def work_reply(message: Message, context: Context, work: WorkFunction) -> Message:
    """The reply of a node that hosts one client. The configuration is composed once, not for every message."""
    configure_process()
    simulation = build_simulation(os.environ[CONFIG])
    return Message(reply_of_node(simulation, message.content, context, work, client_of(context)), reply_to=message)


@echo_app.train()
def echo(message: Message, context: Context) -> Message:
    """The received arrays, and 1 as the number of examples."""
    configure_process()
    arrays = next(iter(message.content.array_records.values()))
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


@single_app.query()
@echo_app.query()
def identify(message: Message, context: Context) -> Message:
    """The client that the node hosts."""
    return Message(RecordDict({"identity": MetricRecord({"client": client_of(context)})}), reply_to=message)


@single_app.train()
def train(message: Message, context: Context) -> Message:
    """Local training of the node's client."""
    return work_reply(message, context, train_chunk)


@single_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluation of the node's client on its local test set."""
    return work_reply(message, context, evaluate_chunk)
