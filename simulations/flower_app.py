"""The ServerApp and the ClientApp of ``flwr run``. They run the same code as all other engines.

The overrides of the run stand in the key ``overrides`` of Flower's run configuration. See :mod:`simulations.engine.client_work` for the
messages that the ClientApp accepts.
"""

import shlex

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from simulations.config import compose
from simulations.engine.client_work import evaluate_chunk, handle_message, train_chunk
from simulations.engine.flower_engine import FlowerGrid
from simulations.federation.runner import run_federation

client_app = ClientApp()

server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the client of this node, or all clients in the message."""
    return handle_message(message, context, train_chunk)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the client of this node, or all clients in the message, on the local test sets."""
    return handle_message(message, context, evaluate_chunk)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation of ``overrides`` on the nodes of Flower's runtime."""
    config = compose(shlex.split(str(context.run_config.get("overrides", ""))))
    run_federation(config, lambda num_clients, text: FlowerGrid(num_clients, text, grid))
