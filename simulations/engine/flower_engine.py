"""Where clients run, as Flower Grids that address logical clients: node ids 0..N-1 are clients, and no strategy knows of workers.

``LocalGrid`` runs them in this process, ``RayGrid`` (:mod:`simulations.engine.ray_engine`) in supervised Ray actors, ``CohortGrid`` on the nodes of another grid:
those of Flower's own simulation runtime, or SuperNodes that each host one client or many. All three ask for the same work of the
same chunks of clients, so they give the same bits.
"""

import time

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from simulations.engine.base import ClientGrid, Waiting
from simulations.engine.worker import Answers, Share, by_client, everyone, judged, request


class FlowerGrid(ClientGrid):
    """Clients run on the nodes of another grid, whatever their number: each is sent one message a phase.

    Args:
        num_clients: N.
        config: the resolved configuration as YAML.
        inner: Flower's grid.
        patience: seconds to wait for the first node.
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
    def num_workers(self) -> int:
        """The nodes there are now."""
        return max(1, len(list(self._inner.get_node_ids())))

    def ask(self, kind: str, content: RecordDict, shares: list[Share], timeout: float | None) -> Waiting:
        asked = dict(zip(sorted(self._inner.get_node_ids()), shares))

        def answers() -> Answers:
            contents = {node: request(content, self.cohort(share), self.owns(content, share)) for node, share in asked.items()}
            messages = [Message(each, dst_node_id=node, message_type=kind) for node, each in contents.items()]
            found: Answers = {}
            for reply in self._inner.send_and_receive(messages, timeout=timeout):
                share = asked[reply.metadata.src_node_id]
                found |= {client: reply.error for client in everyone(share)} if reply.has_error() else judged(by_client(reply.content))
            return found

        return answers
