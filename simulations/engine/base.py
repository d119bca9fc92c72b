"""The base of all engines: a Flower Grid whose nodes are logical clients."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedkd.federation import serialization
from fedkd.metrics.accuracy import Score
from simulations.engine.client_work import WORKER_LOST
from simulations.engine.flower_compat import identify
from simulations.engine.worker import Answers, Share, everyone, split
from simulations.setup.evaluation import test_score
from simulations.setup.simulation import build_simulation


class BlockingGrid(Grid):
    """Messages that are pushed are asked at once by :meth:`send_and_receive`, which is all that is left to be written."""

    def __init__(self) -> None:
        self._inbox: dict[str, Message] = {}
        self._numbers = count()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Ask at once; the replies wait for :meth:`pull_messages`."""
        ids = []
        for reply in self.send_and_receive(messages):
            ids.append(str(next(self._numbers)))
            self._inbox[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to pushed messages, each once."""
        return [self._inbox.pop(i) for i in message_ids if i in self._inbox]

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """A message as Flower's own constructor makes it."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)


Waiting = Callable[[], Answers]
"""What was asked goes on meanwhile; calling this waits for the answers."""


class ClientGrid(BlockingGrid):
    """A grid of logical clients; subclasses say how a cohort is asked.

    A client's memory is its own. In a simulation the grid carries it: out with each request, back with each answer, in a
    record of its own that is not counted as traffic; it holds from ``commit`` on, so a round that failed leaves no trace.

    Args:
        num_clients: N.
        config: the resolved configuration as YAML, from which workers build their world.
    """

    num_workers = 1
    chunk: int | None
    """How many clients a worker trains at once, where the configuration leaves it to the run; None is what the configuration says."""

    def __init__(self, num_clients: int, config: str) -> None:
        super().__init__()
        identify()
        self.num_clients, self.config = num_clients, config
        self.chunk: int | None = None
        self.memory: dict[int, ArrayRecord] = {}
        self._pending: dict[int, ArrayRecord] = {}

    @abstractmethod
    def ask(self, kind: str, content: RecordDict, shares: list[Share], timeout: float | None) -> Waiting:
        """Begin to ask every client, for its answer or error; ``shares`` are cut for the workers, one each; ``kind`` is train or evaluate."""

    def begin(self, messages: Iterable[Message], *, timeout: float | None = None) -> Callable[[], list[Message]]:
        """Begin to ask all clients that ``messages`` address. The function that is returned waits for the replies: one each, sorted by
        client, errors among them."""
        groups: dict[tuple[int, str], list[Message]] = {}
        for message in sorted(messages, key=lambda m: m.metadata.dst_node_id):
            groups.setdefault((id(message.content), message.metadata.message_type), []).append(message)
        asked = [(group, self.ask(kind, group[0].content, self.shares(kind, group), timeout)) for (_, kind), group in groups.items()]

        def replies() -> list[Message]:
            answered = [(message, answers) for group, wait in asked for answers in [wait()] for message in group]
            made = [Message(self._keep(m.metadata.dst_node_id, answers), reply_to=m) for m, answers in answered]
            return sorted(made, key=lambda r: r.metadata.src_node_id)

        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Ask all clients that ``messages`` address; one reply each, sorted by client, errors among them."""
        return self.begin(messages, timeout=timeout)()

    def score(self, model: Callable) -> Callable[[], Score]:
        """Begin the balanced test of ``model``; the function that is returned waits for it."""
        return lambda: test_score(build_simulation(self.config), model)

    def shares(self, kind: str, messages: list[Message]) -> list[Share]:
        """The clients of ``messages`` in chunks, and those dealt out to the workers by the steps that they have to do."""
        home, clients = build_simulation(self.config), [m.metadata.dst_node_id for m in messages]
        if kind != "train":
            chunks = [[client] for client in clients]
            return split(chunks, self.num_workers, [len(home.partition.test[client]) for client in clients])
        server_round = int(messages[0].content["config"]["server-round"])
        chunks = (
            home.chunks(clients, self.chunk or home.config.clients_per_vmap, server_round)
            if serialization.BROADCAST in messages[0].content
            else [[client] for client in clients]
        )
        return split(chunks, self.num_workers, [sum(home.load(client, server_round) for client in chunk) for chunk in chunks])

    def _keep(self, client: int, answers: Answers) -> RecordDict | Error:
        """The answer of ``client`` without its memory, which stays here until ``commit``."""
        answer = answers.get(client, Error(code=WORKER_LOST, reason="no answer came back"))
        if isinstance(answer, RecordDict) and serialization.CLIENT_STATE in answer:
            self._pending[client] = answer.pop(serialization.CLIENT_STATE)
        return answer

    def commit(self, clients: Iterable[int] | None = None) -> None:
        """The round stands: so do the memories that came back with it, or those of ``clients`` alone."""
        self.memory.update(self._pending if clients is None else {c: self._pending[c] for c in clients if c in self._pending})
        self._pending.clear()

    def cohort(self, share: Share) -> ConfigRecord:
        """What a worker is told: whom to ask, who of them at once, and of which world."""
        return ConfigRecord({"clients": everyone(share), "chunks": [len(chunk) for chunk in share], "config": self.config})

    def owns(self, content: RecordDict, share: Share) -> dict[int, ArrayRecord]:
        """The memories of a share's clients, where the message is one of fedkd's."""
        known = [client for client in everyone(share) if client in self.memory] if serialization.BROADCAST in content else []
        return {client: self.memory[client] for client in known}

    def get_node_ids(self) -> list[int]:
        """0..N-1."""
        return list(range(self.num_clients))

    def set_run(self, run: Any) -> None:
        """Flower's runtime calls this; there is nothing to know of a run here."""
        self._run = run

    @property
    def run(self) -> Any:
        """What :meth:`set_run` was given."""
        return self._run

    def close(self) -> None:
        """Give back what the grid holds."""
