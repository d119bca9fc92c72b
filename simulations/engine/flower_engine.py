"""FlowerGrid: clients run on the nodes of another Flower Grid, such as Flower's simulation runtime or SuperNodes of a deployment."""

import sys
import time
from itertools import count

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from simulations.engine.base import ClientGrid, PendingResults
from simulations.engine.client_work import Assignment
from simulations.engine.message_tracker import MessageTracker
from simulations.engine.worker import ClientResults, app_request, clients_of, group_by_client, parse_errors


class FlowerGrid(ClientGrid):
    """Clients run on the nodes of another grid. Each node receives one message per phase, which holds all of its clients.

    Args:
        num_clients: number of clients N.
        config: the resolved configuration as YAML.
        inner: the grid with the nodes.
        patience: seconds to wait for the first node.

    Raises:
        TimeoutError: no node has connected in this time.
    """

    def __init__(self, num_clients: int, config: str, inner: Grid, patience: float = 120.0) -> None:
        super().__init__(num_clients, config)
        self._inner, self._tracker, self._phases = inner, MessageTracker[tuple[int, int]](inner), count()
        deadline = time.monotonic() + patience
        while not list(inner.get_node_ids()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no node has connected within {patience} seconds")
            time.sleep(0.1)

    @property
    def num_workers(self) -> int:  # type: ignore[override]  # nodes can connect at any time
        """The number of nodes that are connected now."""
        return max(1, len(list(self._inner.get_node_ids())))

    def start_work(self, kind: str, content: RecordDict, assignments: list[Assignment], timeout: float | None) -> PendingResults:
        """See :meth:`simulations.engine.base.ClientGrid.start_work`. The messages are sent when their results are waited for."""
        by_node: dict[int, Assignment] = {}
        nodes = sorted(self._inner.get_node_ids())
        for place, assignment in enumerate(assignments if nodes else []):  # a node that has gone leaves its clients to the others
            by_node.setdefault(nodes[place % len(nodes)], []).extend(assignment)

        def wait() -> ClientResults:
            messages = {
                node: Message(
                    app_request(content, self.work(assignment), self.states_for(content, assignment)), dst_node_id=node, message_type=kind
                )
                for node, assignment in by_node.items()
            }
            results: ClientResults = {}
            phase = next(self._phases)
            lost = self._tracker.send({(phase, node): message for node, message in messages.items()})
            for (_, node), reply in self._tracker.wait({(phase, node) for node in by_node}.difference(lost), timeout):
                if reply.has_error():
                    results |= dict.fromkeys(clients_of(by_node[node]), reply.error)
                else:
                    results |= parse_errors(group_by_client(reply.content))
            return results

        return wait

    def close(self) -> None:
        """Say which replies were not used."""
        if line := self._tracker.unused():
            print(line, file=sys.stderr)
