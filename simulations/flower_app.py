"""The ServerApp and the ClientApp, free of configuration: the same two run in every engine and under ``flwr run``.

A ClientApp is asked for one client, or by a grid of :mod:`simulations.engine.base` for a cohort: then a record ``cohort`` names the
clients and carries the configuration, each client's memory travels in a record of its own, and the answers come back the
same way.
"""

import shlex

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from simulations.config import compose
from simulations.engine.client_work import answer, evaluate_chunk, train_chunk
from simulations.engine.flower_engine import FlowerGrid
from simulations.federation.runner import run_federation

client_app = ClientApp()

server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the client, or every client of the cohort, that ``message`` is for."""
    return answer(message, context, train_chunk)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the broadcast model on the own test shard of every client that ``message`` is for."""
    return answer(message, context, evaluate_chunk)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that ``overrides`` describe on the nodes that Flower provides."""
    config = compose(shlex.split(str(context.run_config.get("overrides", ""))))
    run_federation(config, lambda num_clients, text: FlowerGrid(num_clients, text, grid))
