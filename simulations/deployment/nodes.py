"""The nodes of a deployment: which of them hosts which client, and the messages to them.

Each node is asked once for its report, as soon as it is connected. A SuperNode that was killed and started again has a new node id. It is
recognized by its clients, and asked again for what its predecessor has not answered.
"""

import sys
import time
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedkd.errors import ConfigError, EngineError, require
from simulations.deployment.node_report import ClientReport, NodeReport
from simulations.deployment.node_work import DEPLOYMENT
from simulations.engine.flower_compat import set_task_identity
from simulations.engine.flower_engine import PULL_SECONDS, MessageTracker
from simulations.engine.worker_environment import (
    FLOWER_REMEDIES,
    Environment,
    check_environment,
    describe_code,
    describe_process,
    driver_modules,
    environment_request,
)

LOOK_SECONDS = 1.0
"""Seconds between two looks for nodes that have joined or left."""


REMEDIES = {**FLOWER_REMEDIES, "device": f"{FLOWER_REMEDIES['device']}. engine.verify_device=false allows it"}
"""What to do about each kind of difference between a node and the server."""


@dataclass(frozen=True)
class ReportOf:
    """The key of the report of a node."""

    node: int


class Nodes:
    """The nodes of a deployment.

    Args:
        inner: the grid with the nodes.
        config: the resolved configuration as YAML.
        num_clients: number of clients N.
        verify_device: a node must compute on a device of the server's kind.

    Attributes:
        hosts: the node of each client.
        clients: the report of each client.
        environments: the environment of each node that has hosted a client, by the node's name.
        connected: the nodes that are connected, as far as is known.
        tracker: the messages to the nodes.
    """

    def __init__(self, inner: Grid, config: str, num_clients: int, verify_device: bool) -> None:
        set_task_identity()
        self._inner, self._num_clients = inner, num_clients
        self.hosts: dict[int, int] = {}
        self.clients: dict[int, ClientReport] = {}
        self.connected: set[int] = set()
        self.tracker = MessageTracker[object](inner)
        self._replies: dict[object, Message] = {}
        self._asked: set[int] = set()
        self._first: tuple[int, NodeReport] | None = None
        modules = driver_modules(config)
        self._request = environment_request(config, modules)
        ours = {**describe_process(config), **describe_code(modules)}  # the server has no data
        self._ours = {name: value for name, value in ours.items() if verify_device or name != "device"}
        self.environments: dict[str, Environment] = {}
        self._is_running = False
        self._next_look = 0.0

    @property
    def first_report(self) -> NodeReport:
        """The report of the first node, whose task is that of all nodes."""
        assert self._first is not None, "a node has reported"
        return self._first[1]

    def wait_for_all(self, patience: float) -> None:
        """Wait until each client has a node.

        Args:
            patience: seconds to wait.

        Raises:
            ConfigError: a client has no node in this time or two, or a node has another task, or data that cannot be read.
            EngineError: the app does not run on a node, or a node has another environment than the server.
        """
        deadline = time.monotonic() + patience
        while True:
            self.update()
            missing = sorted(set(range(self._num_clients)) - self.hosts.keys())
            if not missing:
                break
            if time.monotonic() >= deadline:
                listed = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
                rule = f"must be the number of clients that SuperNodes host, {len(self.hosts)} after {patience:g} seconds (engine.patience)"
                remedy = "(partition-id, clients), or its app is not started (--isolation process)"
                raise ConfigError(f"num_clients {rule}, got {self._num_clients}; no node hosts client {listed} {remedy}")
            time.sleep(PULL_SECONDS)
        self._is_running = True

    def update(self) -> None:
        """Look for replies, and from time to time for nodes that have joined or left. A node that has joined is asked for its report."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            self.connected = set(self._inner.get_node_ids())
            new = self.connected - self._asked
            content = RecordDict({DEPLOYMENT: self._request})
            asked: dict[object, Message] = {
                ReportOf(node): Message(content, dst_node_id=node, message_type=MessageType.QUERY) for node in sorted(new)
            }
            refused = {key.node for key in self.tracker.send(asked) if isinstance(key, ReportOf)}
            self._asked |= new - refused
        for key, reply in self.tracker.receive().items():
            if not isinstance(key, ReportOf):
                self._replies[key] = reply
                continue
            try:
                self._register(key.node, reply)
            except (ConfigError, EngineError) as error:
                if not self._is_running:
                    raise
                print(f"warning: node {key.node} cannot take part: {error}", file=sys.stderr, flush=True)

    def take_reply(self, key: object) -> Message | None:
        """The reply to the message ``key``, once. None as long as there is none."""
        return self._replies.pop(key, None)

    def _register(self, node: int, reply: Message) -> None:
        """Note which clients a node hosts.

        Raises:
            ConfigError: the node does not fit the run.
            EngineError: the app does not run on the node, or the node has another environment than the server.
        """
        if reply.has_error():
            raise EngineError(f"node {node} must run the app, got error {reply.error.code}: {reply.error.reason}")
        record = reply.content.config_records[DEPLOYMENT]
        if "error" in record:
            raise ConfigError(f"node {node}: {str(record['error'])}")
        report = NodeReport.from_record(record)
        check_environment(self._ours, report.environment, "server", REMEDIES)
        if self._first is None:
            self._first = node, report
        report.check_task(node, self._first[1], self._first[0])
        for client, one in report.clients.items():
            other = self.hosts.get(client)
            is_twice = not self._is_running and other is not None and other in self.connected
            rule = f"must be the number of another client than {client}, which node {other} hosts"
            require(not is_twice, f"partition-id of node {node}", rule, client)
            known = self.clients.setdefault(client, one)
            rule = "must read the data that the client had at the beginning of the run"
            require(known == one, f"node {node} with client {client}", rule, "other data")
        if moved := [client for client in report.clients if self._is_running and client in self.hosts]:
            before = ", ".join(str(self.hosts[client]) for client in moved)
            print(f"node {node} has taken the place of node {before} for client {', '.join(map(str, moved))}", file=sys.stderr, flush=True)
        self.hosts |= dict.fromkeys(report.clients, node)
        self.environments[report.environment["node"]] = report.environment
