"""The base of all engines: a Flower Grid whose nodes are the clients 0..N-1.

Strategies send one message per client and know nothing of workers. A ClientGrid delivers the messages of a phase in four steps:

1. It splits the clients into chunks that train as one program, and assigns the chunks to workers.
2. The engine sends each worker its chunks, the broadcast, and the states of its clients (:meth:`ClientGrid.start_work`). Engines differ in
   this step only: :mod:`simulations.engine.local_engine`, :mod:`simulations.engine.ray_engine`, :mod:`simulations.engine.flower_engine`.
3. The workers process their chunks (:mod:`simulations.engine.client_work`) and return the records of each client.
4. The grid stores the new client states, and returns one reply per client.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, MutableMapping
from itertools import count
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedkd.federation import serialization
from fedkd.federation.messaging import WORKER_LOST
from fedkd.metrics.accuracy import Score
from fedkd.types import Output
from simulations.engine.client_work import Assignment, Work
from simulations.engine.flower_compat import set_task_identity
from simulations.engine.worker import ClientResults, assign_chunks, clients_of
from simulations.engine.worker_environment import Environment
from simulations.setup.evaluation import score_global_test
from simulations.setup.simulation import build_simulation

PendingResults = Callable[[], ClientResults]
"""A function that waits for the results of workers that are already at work."""


class BlockingGrid(Grid):
    """A Flower Grid in terms of ``send_and_receive`` alone, which subclasses implement."""

    def __init__(self) -> None:
        self._inbox: dict[str, Message] = {}
        self._numbers = count()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and wait. The replies are stored for :meth:`pull_messages`."""
        ids = []
        for reply in self.send_and_receive(messages):
            ids.append(str(next(self._numbers)))
            self._inbox[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The stored replies, each of them once."""
        return [self._inbox.pop(message_id) for message_id in message_ids if message_id in self._inbox]

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """A message with the arguments of Flower's constructor."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)


class ClientGrid(BlockingGrid):
    """A grid of the clients 0..N-1. Subclasses implement :meth:`start_work`.

    The grid holds the state of each client. A state is sent to the worker with each request and comes back with the reply. It is not part
    of the traffic between client and server. New states take effect with :meth:`commit`, so a round that failed leaves no trace.

    Args:
        num_clients: number of clients N.
        config: the resolved configuration as YAML, from which workers build the simulation.
    """

    num_workers: int = 1
    """Number of workers among which the clients are divided."""

    def __init__(self, num_clients: int, config: str) -> None:
        super().__init__()
        set_task_identity()
        self.num_clients, self.config = num_clients, config
        self.clients_per_vmap: int | None = None
        """Clients that a worker trains as one program. None takes the value of the configuration."""
        self.client_states: MutableMapping[int, ArrayRecord] = {}
        """The states of clients that have trained, after the last :meth:`commit`. A run replaces it by one that keeps them on disk."""
        self._uncommitted: dict[int, ArrayRecord] = {}

    @abstractmethod
    def start_work(self, kind: str, content: RecordDict, assignments: list[Assignment], timeout: float | None) -> PendingResults:
        """Send work to the workers without waiting for the results.

        Args:
            kind: ``train`` or ``evaluate``.
            content: the content that all clients share.
            assignments: the chunks of clients of each worker.
            timeout: seconds after which the clients without a result have failed. None waits without limit.

        Returns:
            A function that waits for the results.
        """

    def send(self, messages: Iterable[Message], *, timeout: float | None = None) -> Callable[[], list[Message]]:
        """Send messages to clients without waiting for the replies.

        Args:
            messages: one message per client.
            timeout: seconds after which the clients without a reply have failed. None waits without limit.

        Returns:
            A function that waits for the replies. There is one for each message, in the order of clients, and some may be errors.
        """
        groups: dict[tuple[int, str], list[Message]] = {}
        for message in sorted(messages, key=lambda message: message.metadata.dst_node_id):
            groups.setdefault((id(message.content), message.metadata.message_type), []).append(message)
        started = [
            (group, self.start_work(kind, group[0].content, self.assign_clients(kind, group), timeout))
            for (_, kind), group in groups.items()
        ]

        def receive() -> list[Message]:
            results = [(message, by_client) for group, wait in started for by_client in [wait()] for message in group]
            replies = [Message(self._take_state(m.metadata.dst_node_id, by_client), reply_to=m) for m, by_client in results]
            return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

        return receive

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages to clients, and wait for the replies. See :meth:`send`."""
        return self.send(messages, timeout=timeout)()

    def start_global_test(self, model: Callable[[Tensor], Output]) -> Callable[[], Score]:
        """Evaluate a model on the global test set. The result is a function that waits for the score."""
        return lambda: score_global_test(build_simulation(self.config), model)

    def assign_clients(self, kind: str, messages: list[Message]) -> list[Assignment]:
        """The chunks of clients of each worker, divided by the number of examples that each chunk processes.

        Args:
            kind: ``train`` or ``evaluate``. Clients are evaluated one at a time.
            messages: messages with the same content, one per client.
        """
        simulation, clients = build_simulation(self.config), [message.metadata.dst_node_id for message in messages]
        content = messages[0].content
        if kind != "train":
            simulation = simulation.at(serialization.data_round_of(content))
            test_sizes = [len(simulation.partition.test[client]) for client in clients]
            return assign_chunks([[client] for client in clients], self.num_workers, test_sizes)
        server_round, chunks = serialization.server_round_of(content), [[client] for client in clients]
        if serialization.BROADCAST in content:
            chunks = simulation.split_into_chunks(clients, self.clients_per_vmap or simulation.config.clients_per_vmap, server_round)
        costs = [sum(simulation.num_examples_per_round(client, server_round) for client in chunk) for chunk in chunks]
        return assign_chunks(chunks, self.num_workers, costs)

    def work(self, assignment: Assignment) -> Work:
        """The work of a worker with these chunks of clients."""
        return Work(assignment, self.config)

    def states_for(self, content: RecordDict, assignment: Assignment) -> dict[int, ArrayRecord]:
        """The states to send with a message: those of the assigned clients that have trained, and none for Flower's strategies."""
        if serialization.BROADCAST not in content:
            return {}
        return {client: self.client_states[client] for client in clients_of(assignment) if client in self.client_states}

    def commit(self, clients: Iterable[int] | None = None) -> None:
        """Let the new states of ``clients`` take effect, and discard those of all others. None takes all new states."""
        states = self._uncommitted
        self.client_states.update(states if clients is None else {client: states[client] for client in clients if client in states})
        self._uncommitted.clear()

    def new_client_state(self, client: int) -> ArrayRecord | None:
        """The client's new state, which has not taken effect yet. None if there is none."""
        return self._uncommitted.get(client)

    def metrics(self) -> dict[str, int]:
        """Numbers of the engine for the row of a round. None where they cannot change."""
        return {}

    def keep_messages(self, folder: Path) -> None:
        """Write messages of the engine's own library to a file in the run folder, where there are any."""

    def environments(self) -> dict[str, Environment]:
        """The environment of each node that has had a worker, where workers are other processes."""
        return {}

    def get_node_ids(self) -> list[int]:
        """The clients 0..N-1."""
        return list(range(self.num_clients))

    def set_run(self, run: Any) -> None:
        """Store Flower's information on the run. It is not used."""
        self._run = run

    @property
    def run(self) -> Any:
        """The value of :meth:`set_run`."""
        return self._run

    def close(self) -> None:
        """Release what the grid holds."""

    def _take_state(self, client: int, results: ClientResults) -> RecordDict | Error:
        """The result of a client, without its new state, which is stored until :meth:`commit`."""
        result = results.get(client, Error(code=WORKER_LOST, reason="the worker sent no reply"))
        if isinstance(result, RecordDict) and serialization.CLIENT_STATE in result:
            self._uncommitted[client] = serialization.array_record(result, serialization.CLIENT_STATE)
            del result[serialization.CLIENT_STATE]
        return result
