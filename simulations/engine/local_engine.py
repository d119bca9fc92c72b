"""LocalGrid: clients run in this process."""

from flwr.app import RecordDict

from fedkd.federation import serialization
from simulations.engine.base import ClientGrid, PendingResults
from simulations.engine.client_work import Assignment, run_chunks
from simulations.engine.worker import WORK_FUNCTIONS, ClientResults, parse_errors
from simulations.process import configure_process


class LocalGrid(ClientGrid):
    """Clients run in this process, one chunk after the other. They run when their results are waited for.

    Args:
        num_clients: number of clients N.
        config: the resolved configuration as YAML.
    """

    def __init__(self, num_clients: int, config: str) -> None:
        super().__init__(num_clients, config)
        configure_process()

    def start_work(self, kind: str, content: RecordDict, assignments: list[Assignment], timeout: float | None) -> PendingResults:
        """See :meth:`simulations.engine.base.ClientGrid.start_work`. The timeout is ignored, as this process cannot interrupt itself."""

        def wait() -> ClientResults:
            results: ClientResults = {}
            for assignment in assignments:
                states = self.client_states if serialization.BROADCAST in content else {}  # each is read when its client is at work
                results |= parse_errors(run_chunks(WORK_FUNCTIONS[kind], content, self.work(assignment), states))
            return results

        return wait
