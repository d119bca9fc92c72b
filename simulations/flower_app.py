"""The ServerApp and the ClientApp of ``flwr run``. They run the same code as all other engines.

The keys of Flower's run configuration are those of :data:`simulations.overrides.RUN_CONFIG_KEYS` and ``overrides``. See
:mod:`simulations.engine.client_work` and :mod:`simulations.deployment.node_work` for the messages that the ClientApp accepts.
"""

import sys

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from omegaconf import DictConfig, OmegaConf

from fedkd.config.build import build
from simulations.config import compose
from simulations.deployment.node_work import DEPLOYMENT, handle_work, report_node
from simulations.deployment.nodes import Nodes
from simulations.deployment.server_simulation import check_deployment, server_simulation, unavailable
from simulations.engine.base import ClientGrid
from simulations.engine.client_work import WorkFunction, evaluate_chunk, handle_message, train_chunk
from simulations.engine.flower_engine import FlowerGrid
from simulations.engine.worker_environment import report_environment
from simulations.federation.runner import DEPLOYMENT_ENGINE, run_federation
from simulations.overrides import run_config_words
from simulations.setup.simulation import Simulation

client_app = ClientApp()

server_app = ServerApp()


@client_app.query()
def report(message: Message, context: Context) -> Message:
    """Say what this node's environment is, and in a deployment which clients it hosts and how much data they have."""
    if DEPLOYMENT in message.content:
        return report_node(message, context)
    return report_environment(message, context)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients of this node, or all clients in the message."""
    return handle(message, context, train_chunk)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the clients of this node, or all clients in the message, on the local test sets."""
    return handle(message, context, evaluate_chunk)


def handle(message: Message, context: Context, work_function: WorkFunction) -> Message:
    """The reply to a message of a deployment, or of any other grid."""
    return (handle_work if DEPLOYMENT in message.content else handle_message)(message, context, work_function)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation of the run configuration on the nodes of Flower's runtime."""
    config = compose(run_config_words(context.run_config))
    if config.engine._target_ == DEPLOYMENT_ENGINE:
        run_deployment(config, grid)
    else:
        run_federation(config, lambda num_clients, text: FlowerGrid(num_clients, text, grid))


def run_deployment(config: DictConfig, grid: Grid) -> None:
    """Run a federation whose clients live on the nodes of ``grid``.

    Args:
        config: the composed configuration, with ``engine=deployment``.
        grid: the grid with the nodes.

    Raises:
        ConfigError: the configuration is wrong, or the nodes do not fit it.
        EngineError: the app does not run on a node.
    """
    found: list[tuple[Nodes, Simulation]] = []

    def make_simulation(config: DictConfig) -> Simulation:
        check_deployment(config)
        nodes = Nodes(grid, OmegaConf.to_yaml(config, resolve=True), config.num_clients, config.engine.verify_device)
        nodes.wait_for_all(config.engine.patience)
        simulation = server_simulation(config, nodes.clients, nodes.first_report.task, nodes.first_report.scale)
        found.append((nodes, simulation))
        for line in unavailable(simulation):
            print(line, file=sys.stderr, flush=True)
        return simulation

    def make_grid(num_clients: int, text: str) -> ClientGrid:
        return build(config, "engine")(num_clients, text, found[0])

    run_federation(config, make_grid, make_simulation=make_simulation)
