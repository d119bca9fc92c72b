"""Where clients run, as Flower Grids that address logical clients: node ids 0..N-1 are clients, and no strategy knows of workers.

``LocalGrid`` runs them in this process, ``RayGrid`` (:mod:`simulations.engine.ray_engine`) in supervised Ray actors, ``CohortGrid`` on the nodes of another grid:
those of Flower's own simulation runtime, or SuperNodes that each host one client or many. All three ask for the same work of the
same chunks of clients, so they give the same bits.
"""

from flwr.app import RecordDict

from simulations.engine.base import ClientGrid, Waiting
from simulations.engine.client_work import answers as found
from simulations.engine.worker import WORK, Answers, Share, judged
from simulations.process import configure_process


class LocalGrid(ClientGrid):
    """Clients run in this process, one share after the other, when their answers are waited for."""

    def __init__(self, num_clients: int, config: str) -> None:
        super().__init__(num_clients, config)
        configure_process()

    def ask(self, kind: str, content: RecordDict, shares: list[Share], timeout: float | None) -> Waiting:
        def answers() -> Answers:
            done = [found(WORK[kind], content, self.cohort(share), self.owns(content, share)) for share in shares]
            return {client: answer for one in done for client, answer in judged(one).items()}

        return answers
