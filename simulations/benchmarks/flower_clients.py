"""ClientApps for nodes of Flower's own runtime, one client a node, in a module of their own: what stands in ``__main__`` would be
pickled with every task.
"""

import os

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedkd.federation import serialization
from simulations.engine.client_work import Work, broadcast, evaluate_chunk, train_chunk
from simulations.setup.simulation import build_simulation

CONFIG = "FEDKD_BENCHMARK_CONFIG"
"""The environment variable that hands the configuration (YAML) to Flower's actors: there ``Context.run_config`` is empty."""


single_app = ClientApp()

echo_app = ClientApp()


@echo_app.train()
def echo(message: Message, context: Context) -> Message:
    """What came goes back, with a number of examples; no work."""
    arrays = next(iter(message.content.array_records.values()))
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


@single_app.query()
@echo_app.query()
def who(message: Message, context: Context) -> Message:
    """Which client this node is, 0..N-1."""
    return Message(RecordDict({"who": MetricRecord({"client": int(context.node_config["partition-id"])})}), reply_to=message)


@single_app.train()
def train(message: Message, context: Context) -> Message:
    """One client's local training."""
    return answer(message, context, train_chunk)


@single_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """One client's own test shard."""
    return answer(message, context, evaluate_chunk)


def answer(message: Message, context: Context, work: Work) -> Message:
    """As :mod:`simulations.engine.client_work` answers for one client, but the configuration is composed once, not for every message."""
    home, own = build_simulation(os.environ[CONFIG]), context.state.get(serialization.CLIENT_STATE)
    client = int(context.node_config["partition-id"])
    (reply,) = work(home, message.content, broadcast(home, message.content), [own], [client])
    if serialization.CLIENT_STATE in reply:
        context.state[serialization.CLIENT_STATE] = reply.pop(serialization.CLIENT_STATE)
    return Message(reply, reply_to=message)
