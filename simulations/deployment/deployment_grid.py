"""DeploymentGrid: every client lives on a SuperNode, with its data and its memory. The server holds neither."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from flwr.app import Error, Message, RecordDict
from torch import Tensor

from fedkd.errors import ConfigError
from fedkd.federation import serialization
from fedkd.federation.messaging import TIMED_OUT, WORKER_LOST
from fedkd.metrics.accuracy import Score
from fedkd.types import Output
from simulations.deployment.node_work import DEPLOYMENT, work_request
from simulations.deployment.nodes import Nodes
from simulations.engine.base import ClientGrid, PendingResults
from simulations.engine.client_work import Assignment
from simulations.engine.flower_compat import LOST_REPLY_CODES
from simulations.engine.flower_engine import PULL_SECONDS
from simulations.engine.worker import ClientResults, clients_of, group_by_client, parse_errors
from simulations.engine.worker_environment import Environment
from simulations.setup.evaluation import score_global_test
from simulations.setup.simulation import Simulation

MAX_SENDINGS = 2
"""Times that clients are asked on one node. A node that ends twice at the same work would do so for ever."""


@dataclass(eq=False)
class Request:
    """A message to a node that has not been answered.

    Args:
        clients: the clients of the node that are asked.
        node: the node.
        number: how often the clients have been asked on this node.
        lost: why no reply will come; empty as long as one can.
        lost_since: when the node was first missed, in seconds of the monotonic clock; None while it is connected.
    """

    clients: list[int]
    node: int
    number: int = 1
    lost: str = ""
    lost_since: float | None = None


class DeploymentGrid(ClientGrid):
    """Clients train on the SuperNodes that host them. Each node receives one message per phase.

    The states of the clients stay on the nodes. The grid holds the round in which each client has trained last, which tells a node from
    which of its states the client continues.

    Args:
        num_clients: number of clients N.
        config: the resolved configuration as YAML.
        nodes: the nodes, and ``simulation``, that of the server. None outside ``flwr run``.
        patience: seconds to wait for all nodes before the first round, and for a node that is gone to come back.
        server_data: the server has test data of its own. See :mod:`simulations.deployment.server_simulation`.
        verify_device: nodes must compute on devices of the server's kind. See :class:`simulations.deployment.nodes.Nodes`, which checks it.

    Raises:
        ConfigError: there are no nodes, as the run was not started by ``flwr run``.
    """

    def __init__(
        self,
        num_clients: int,
        config: str,
        nodes: tuple[Nodes, Simulation] | None = None,
        *,
        patience: float,
        server_data: bool,
        verify_device: bool,
    ) -> None:
        super().__init__(num_clients, config)
        if nodes is None:
            raise ConfigError("engine must be local or ray for this command, got deployment, which flwr run starts")
        self._nodes, self._simulation = nodes
        self._patience, self.clients_per_vmap = patience, 1

    @property
    def num_workers(self) -> int:  # type: ignore[override]  # nodes come and go
        """The number of nodes that host a client."""
        return len(set(self._nodes.hosts.values()))

    def environments(self) -> dict[str, Environment]:
        """See :meth:`simulations.engine.base.ClientGrid.environments`."""
        return self._nodes.environments

    def assign_clients(self, kind: str, messages: list[Message]) -> list[Assignment]:
        """The clients of each node, each as a chunk of its own."""
        return [[[client] for client in clients] for _, clients in self._by_node(message.metadata.dst_node_id for message in messages)]

    def start_work(self, kind: str, content: RecordDict, assignments: list[Assignment], timeout: float | None) -> PendingResults:
        """See :meth:`simulations.engine.base.ClientGrid.start_work`. The messages are sent at once."""
        last_rounds = {client: self._last_round(client) for assignment in assignments for client in clients_of(assignment)}
        requests: list[Request] = []

        def send(clients: Iterable[int], number: int = 1) -> None:
            for node, group in self._by_node(clients):
                request = Request(group, node, number)
                asked = work_request(self.config, self._simulation, {k: last_rounds[k] for k in group})
                message = Message(RecordDict({**content, DEPLOYMENT: asked}), dst_node_id=node, message_type=kind)
                if self._nodes.tracker.send({request: message}):
                    request.lost = "the node is not connected"
                requests.append(request)

        def wait() -> ClientResults:
            begin, results = time.monotonic(), ClientResults()
            while True:
                self._nodes.update()
                for request in list(requests):
                    if (done := self._result_of(request, kind, content)) is not None:
                        results.update(done)
                        requests.remove(request)
                    elif self._has_moved(request):
                        requests.remove(request)
                        self._nodes.tracker.abandon([request])
                        send(request.clients)
                    elif request.lost and request.node in self._nodes.connected and request.number < MAX_SENDINGS:
                        requests.remove(request)
                        send(request.clients, request.number + 1)
                    elif reason := self._given_up(request, begin, timeout):
                        requests.remove(request)
                        self._nodes.tracker.abandon([request])
                        results.update(dict.fromkeys(request.clients, reason))
                if not requests:
                    return results
                time.sleep(min(1.0, max(PULL_SECONDS, (time.monotonic() - begin) / 20)))

        send(last_rounds)
        return wait

    def start_global_test(self, model: Callable[[Tensor], Output]) -> Callable[[], Score]:
        """Evaluate a model on the server's own test data. The result is a function that waits for the score."""
        return lambda: score_global_test(self._simulation, model)

    def close(self) -> None:
        """Say which replies were not used."""
        if line := self._nodes.tracker.unused():
            print(line, file=sys.stderr)

    def _by_node(self, clients: Iterable[int]) -> Iterator[tuple[int, list[int]]]:
        """The clients of each node, ascending."""
        groups: dict[int, list[int]] = {}
        for client in sorted(clients):
            groups.setdefault(self._nodes.hosts[client], []).append(client)
        yield from groups.items()

    def _last_round(self, client: int) -> int:
        """The round of the client's last update that was aggregated. 0 if there is none."""
        state = self.client_states.get(client)
        return 0 if state is None else int(serialization.from_record(state)["client"]["last_round"])

    def _result_of(self, request: Request, kind: str, content: RecordDict) -> ClientResults | None:
        """The results of a request if its reply has come. A trained client gets the round as its state, as the rest stays on the node."""
        reply = self._nodes.take_reply(request)
        if reply is None:
            return None
        if reply.has_error():
            if reply.error.code not in LOST_REPLY_CODES:
                return dict.fromkeys(request.clients, reply.error)
            request.lost = reply.error.reason or f"error {reply.error.code}"
            return None
        results = parse_errors(group_by_client(reply.content))
        if kind == "train" and serialization.BROADCAST in content:
            number = serialization.server_round_of(content)
            for client, result in results.items():
                if isinstance(result, RecordDict):
                    counts = {"last_round": number, "num_examples": self._nodes.clients[client].num_train_examples}
                    kept = {"client": {name: torch.tensor(value) for name, value in counts.items()}}
                    result[serialization.CLIENT_STATE] = serialization.to_record(kept)
        return results

    def _has_moved(self, request: Request) -> bool:
        """Whether a client of the request is hosted by another node now."""
        return any(self._nodes.hosts[client] != request.node for client in request.clients)

    def _given_up(self, request: Request, begin: float, timeout: float | None) -> Error | None:
        """Why a request is not waited for any more; None if it is.

        Args:
            request: the request.
            begin: when the waiting began, in seconds of the monotonic clock.
            timeout: seconds to wait. None waits without limit.
        """
        now, is_connected = time.monotonic(), request.node in self._nodes.connected
        is_gone = bool(request.lost) or not is_connected
        request.lost_since = (request.lost_since or now) if is_gone else None
        if timeout is not None and now - begin >= timeout:
            return Error(TIMED_OUT, f"no reply within {timeout} seconds (timeout)")
        if request.lost and is_connected:
            return Error(WORKER_LOST, f"node {request.node} was lost {request.number} times at this work: {request.lost}")
        if request.lost_since is not None and now - request.lost_since >= self._patience:
            why = request.lost or "it is not connected"
            return Error(WORKER_LOST, f"node {request.node} has not come back in {self._patience:g} seconds (engine.patience): {why}")
        return None
