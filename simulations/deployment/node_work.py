"""What a SuperNode of a deployment does: report its clients, train and evaluate them on its own data, and keep their memory.

The node configuration chooses the clients and their data:

- ``partition-id`` is the client of the node. ``clients="3,4,5"`` names several in its place.
- ``data-root`` replaces ``data.root`` of the run. ``{client}`` in it stands for the number of the client.
- ``own-data=true``: the data set at ``data-root`` belongs to the client alone. Otherwise the client takes its part of the run's partition.
- ``memory-dir`` is the folder of the clients' memory. By default it is ``fedkd`` in ``$FLWR_HOME`` or ``~/.flwr``.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from omegaconf import DictConfig, OmegaConf

from fedkd.errors import FedkdError, require
from fedkd.federation import serialization
from fedkd.federation.messaging import CLIENT_RAISED
from simulations.deployment.client_memory import ClientMemory
from simulations.deployment.node_report import ClientReport, NodeReport
from simulations.engine.client_work import WorkFunction, error_reply, process_chunks
from simulations.engine.worker_environment import Modules, describe_code, describe_process, modules_of_request
from simulations.process import configure_process
from simulations.setup.simulation import Simulation, build_simulation, index_digest

DEPLOYMENT = "deployment"
"""Name of the record with the request to a node: ``config``; of a report ``modules``; of work ``clients``, ``last_rounds``, ``run``,
``absent`` and ``num_total_examples``."""

NodeConfig = Mapping[str, object]
"""The node configuration of a SuperNode."""


def work_request(config: str, simulation: Simulation, last_rounds: Mapping[int, int]) -> ConfigRecord:
    """The record that asks a node to train or evaluate clients.

    Args:
        config: the resolved configuration as YAML.
        simulation: that of the server. Nodes receive what their own data do not tell: the hash of the run, for the clients' memory, the
            classes without training examples at any client, and the number of training examples of all clients.
        last_rounds: for each client the round of its last update that was aggregated, 0 if there is none.
    """
    record = ConfigRecord({"config": config, "run": simulation.series, "num_total_examples": simulation.num_total_examples})
    record["absent"], record["clients"], record["last_rounds"] = list(simulation.task.absent), list(last_rounds), list(last_rounds.values())
    return record


def clients_of_node(node_config: NodeConfig) -> list[int]:
    """The clients that a node hosts.

    Raises:
        ConfigError: the node configuration names none.
    """
    given = str(node_config.get("clients", node_config.get("partition-id", "")))
    numbers = [word.strip() for word in given.split(",")]
    rule = "must be the number of the node's client, or clients a list such as '3,4,5', in the node configuration"
    require(all(number.isdecimal() for number in numbers), "partition-id", rule, given)
    return sorted({int(number) for number in numbers})


def client_simulation(config: str, node_config: NodeConfig, client: int, absent: tuple[int, ...] = (), total: int = 0) -> Simulation:
    """The simulation of a run with the data of one client of this node.

    Args:
        config: the resolved configuration as YAML.
        node_config: the node configuration.
        client: the client.
        absent: classes without training examples at any client.
        total: number of training examples of all clients.

    Raises:
        ConfigError: the node's data cannot be read, or do not fit the run.
    """
    run, root, is_own = OmegaConf.create(config), node_config.get("data-root"), node_config.get("own-data", False)
    assert isinstance(run, DictConfig)
    require(isinstance(is_own, bool), "own-data", "must be true or false in the node configuration", is_own)
    require(client < run.num_clients, "partition-id", f"must be in 0..{run.num_clients - 1} (num_clients={run.num_clients})", client)
    if root is not None:
        require("root" in run.data, "data-root", f"must not be set, as data={run.choices.get('data', 'data')} reads no folder", root)
        run.data.root = str(Path(str(root).replace("{client}", str(client))).expanduser().absolute())
    return build_simulation(OmegaConf.to_yaml(run), *((client, absent, total) if is_own else ()))


def report_node(message: Message, context: Context) -> Message:
    """The reply to a request with the run and the server's modules: the node's report, or an error in one line."""
    configure_process()
    request = message.content.config_records[DEPLOYMENT]
    try:
        modules = modules_of_request(request)
        record = node_report(str(request["config"]), modules, context.node_config, context.node_id).to_record()
    except FedkdError as error:
        record = ConfigRecord({"error": str(error)})
    return Message(RecordDict({DEPLOYMENT: record}), reply_to=message)


def node_report(config: str, modules: Modules, node_config: NodeConfig, node: int) -> NodeReport:
    """The report of a node.

    Args:
        config: the resolved configuration as YAML.
        modules: the modules of the server.
        node_config: the node configuration.
        node: the node.

    Raises:
        ConfigError: the node's configuration is wrong, or its data cannot be read or do not fit the run.
    """
    clients = clients_of_node(node_config)
    reports = {}
    for client in clients:
        simulation = client_simulation(config, node_config, client)
        train, test = simulation.partition.train[client], simulation.partition.test[client]
        classes = tuple(simulation.train.labels[train].unique().tolist())
        digest = f"{simulation.train.digest} {simulation.client_data.local_test_pool.digest} {index_digest(train, test)}"
        reports[client] = ClientReport(len(train), len(test), classes, digest)
    data = {f"client_{client}": one.digest for client, one in reports.items()}
    environment = {**describe_process(config, f"node {node}"), **describe_code(modules), "data": data}
    return NodeReport(reports, simulation.task, simulation.train.scale, environment)


def handle_work(message: Message, context: Context, work_function: WorkFunction) -> Message:
    """The reply to :func:`work_request`: the records of the clients, where names have the client in front: ``7/update``.

    Args:
        message: the message of the server.
        context: the context of the node, in which the clients' memory is kept.
        work_function: :func:`simulations.engine.client_work.train_chunk` or ``evaluate_chunk``.
    """
    configure_process()
    request, content = message.content.config_records[DEPLOYMENT], message.content
    last_rounds = dict(zip(cast(list[int], request["clients"]), cast(list[int], request["last_rounds"])))
    records = RecordDict()
    for client, last_round in last_rounds.items():
        try:
            reply = client_reply(content, context, work_function, client, last_round)
        except FedkdError as error:
            reply = error_reply(CLIENT_RAISED, str(error))
        for name, record in reply.items():
            records[f"{client}/{name}"] = record
    return Message(records, reply_to=message)


def client_reply(content: RecordDict, context: Context, work_function: WorkFunction, client: int, last_round: int) -> RecordDict:
    """The records of one client. Its new state stays in the memory of the node.

    Args:
        content: the content of the message.
        context: the context of the node.
        work_function: trains or evaluates.
        client: the client.
        last_round: the round of its last update that was aggregated, 0 if there is none.

    Raises:
        ConfigError: the node does not host the client, or its data cannot be read.
        RunFolderError: the memory of that round is lost.
    """
    request, node_config = content.config_records[DEPLOYMENT], context.node_config
    hosted, run = clients_of_node(node_config), str(request["run"])
    require(run.isalnum(), "run", "must be the hash of a run, as it names a folder of this node", run)
    require(client in hosted, "partition-id", f"must be {client}, which the server asks for", hosted)
    absent, total = tuple(cast(list[int], request["absent"])), int(cast(int, request["num_total_examples"]))
    simulation = client_simulation(str(request["config"]), node_config, client, absent, total)
    states: dict[int, ArrayRecord] = {}
    num_kept = int(simulation.config.checkpoint_every) + 2  # those after the last checkpoint, that one, and the one before it
    memory = ClientMemory(context.state, memory_folder(node_config), run, client, num_kept)
    has_memory = serialization.BROADCAST in content  # clients of Flower's strategies keep nothing
    if has_memory and (state := memory.load(last_round)) is not None:
        states[client] = state
    reply = process_chunks(simulation, work_function, content, [[client]], states)[client]
    if serialization.CLIENT_STATE in reply:
        memory.store(serialization.server_round_of(content), serialization.array_record(reply, serialization.CLIENT_STATE))
        del reply[serialization.CLIENT_STATE]
    return reply


def memory_folder(node_config: NodeConfig) -> Path:
    """The folder of the memory of all runs on this node."""
    home = os.environ.get("FLWR_HOME") or "~/.flwr"
    return Path(str(node_config.get("memory-dir") or Path(home) / "fedkd")).expanduser().absolute()
