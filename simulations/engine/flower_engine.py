"""FlowerGrid: clients run on the nodes of another Flower Grid, such as Flower's simulation runtime or SuperNodes of a deployment."""

import time

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from simulations.engine.base import ClientGrid, PendingResults
from simulations.engine.client_work import Assignment
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
        self._inner = inner
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
        by_node = dict(zip(sorted(self._inner.get_node_ids()), assignments))

        def wait() -> ClientResults:
            requests = {
                node: app_request(content, self.work(assignment), self.states_for(content, assignment))
                for node, assignment in by_node.items()
            }
            messages = [Message(request, dst_node_id=node, message_type=kind) for node, request in requests.items()]
            results: ClientResults = {}
            for reply in self._inner.send_and_receive(messages, timeout=timeout):
                if reply.has_error():
                    results |= dict.fromkeys(clients_of(by_node[reply.metadata.src_node_id]), reply.error)
                else:
                    results |= parse_errors(group_by_client(reply.content))
            return results

        return wait
