"""Where clients run, as Flower Grids that address logical clients: node ids 0..N-1 are clients, and no strategy knows of workers.

``LocalGrid`` runs them in this process, ``RayGrid`` in supervised Ray actors, ``CohortGrid`` on the nodes of another grid:
those of Flower's own simulation runtime, or SuperNodes that each host one client or many. All three ask for the same work of the
same chunks of clients, so they give the same bits.
"""

import os
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count, pairwise
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedkd import wire
from fedkd.check import require
from fedkd.config import make
from fedkd.evaluate import Score
from simulations import columns
from simulations.apps import CLIENT_RAISED, TIMED_OUT, WORKER_LOST
from simulations.apps import answers as found
from simulations.cluster import DIRECT, dismiss, hire, start_ray
from simulations.compat import identify
from simulations.process import settle
from simulations.scores import on_test
from simulations.workers import WORK, Answers, Share, by_client, everyone, judged, packed, portions, request, split
from simulations.world import world

Waiting = Callable[[], Answers]
"""What was asked goes on meanwhile; calling this waits for the answers."""


class ClientGrid(Grid):
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
        identify()
        self.num_clients, self.config = num_clients, config
        self.chunk: int | None = None
        self.memory: dict[int, ArrayRecord] = {}
        self._pending: dict[int, ArrayRecord] = {}
        self._inbox: dict[str, Message] = {}
        self._numbers = count()

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
        return lambda: on_test(world(self.config), model)

    def shares(self, kind: str, messages: list[Message]) -> list[Share]:
        """The clients of ``messages`` in chunks, and those dealt out to the workers by the steps that they have to do."""
        home, clients = world(self.config), [m.metadata.dst_node_id for m in messages]
        if kind != "train":
            chunks = [[client] for client in clients]
            return split(chunks, self.num_workers, [len(home.partition.test[client]) for client in clients])
        server_round = int(messages[0].content["config"]["server-round"])
        chunks = (
            home.chunks(clients, self.chunk or home.config.cohort, server_round)
            if wire.SHARED in messages[0].content
            else [[client] for client in clients]
        )
        return split(chunks, self.num_workers, [sum(home.load(client, server_round) for client in chunk) for chunk in chunks])

    def _keep(self, client: int, answers: Answers) -> RecordDict | Error:
        """The answer of ``client`` without its memory, which stays here until ``commit``."""
        answer = answers.get(client, Error(code=WORKER_LOST, reason="no answer came back"))
        if isinstance(answer, RecordDict) and wire.OWN in answer:
            self._pending[client] = answer.pop(wire.OWN)
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
        known = [client for client in everyone(share) if client in self.memory] if wire.SHARED in content else []
        return {client: self.memory[client] for client in known}

    def get_node_ids(self) -> list[int]:
        """0..N-1."""
        return list(range(self.num_clients))

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

    def set_run(self, run: Any) -> None:
        """Flower's runtime calls this; there is nothing to know of a run here."""
        self._run = run

    @property
    def run(self) -> Any:
        """What :meth:`set_run` was given."""
        return self._run

    def close(self) -> None:
        """Give back what the grid holds."""


class LocalGrid(ClientGrid):
    """Clients run in this process, one share after the other, when their answers are waited for."""

    def __init__(self, num_clients: int, config: str) -> None:
        super().__init__(num_clients, config)
        settle()

    def ask(self, kind: str, content: RecordDict, shares: list[Share], timeout: float | None) -> Waiting:
        def answers() -> Answers:
            done = [found(WORK[kind], content, self.cohort(share), self.owns(content, share)) for share in shares]
            return {client: answer for one in done for client, answer in judged(one).items()}

        return answers


class RayGrid(ClientGrid):
    """Clients run in Ray actors. Where an actor dies, another takes its place and is asked for its clients again, chunk by chunk,
    so that whoever takes the actor down does not take other chunks along; a client whose actor dies twice has failed.

    Past the timeout, actors that still work are ended and replaced; all clients of their share have failed.

    Args:
        num_clients: N.
        config: the resolved configuration as YAML.
        workers: how many actors; None is one a core.
        num_gpus: of each actor; fractions allowed.
        address: of an existing cluster; None starts Ray on this machine.
    """

    def __init__(self, num_clients: int, config: str, *, workers: int | None, num_gpus: float, address: str | None) -> None:
        super().__init__(num_clients, config)
        require(workers is None or workers > 0, "workers", "must be > 0, or null for one a core", workers)
        require(num_gpus >= 0, "num_gpus", "must be >= 0", num_gpus)
        self.num_workers = min(workers or os.cpu_count() or 1, num_clients)
        self._ray = start_ray(self.num_workers, address)
        if address is None:  # a cluster may grow, this machine does not
            most = self._ray.cluster_resources().get("GPU", 0)
            rule = f"must be at most {most / self.num_workers:g}, as {self.num_workers} workers share {most:g} GPUs"
            require(num_gpus * self.num_workers <= most, "num_gpus", rule, num_gpus)
        self._num_gpus = num_gpus
        self._actors = hire(self._ray, num_gpus, self.num_workers)

    def ask(self, kind: str, content: RecordDict, shares: list[Share], timeout: float | None) -> Waiting:
        ray, answers = self._ray, {}
        queues = [deque(portions(share)) for share in shares]
        small = wire.size(content) * sum(map(len, queues)) <= DIRECT
        broadcast = content if small else ray.put(content)  # once, however many clients there are
        running: dict[Any, tuple[int, Any, Share]] = {}
        lost = {client: 0 for share in shares for client in everyone(share)}

        def send(number: int) -> None:
            if queues[number]:
                share = queues[number].popleft()
                owns = columns.pack({client: RecordDict({wire.OWN: own}) for client, own in self.owns(content, share).items()})
                actor = self._actors[number]
                running[actor.work.remote(kind, broadcast, self.cohort(share), owns)] = (number, actor, share)

        def wait() -> Answers:
            deadline = None if timeout is None else time.monotonic() + timeout
            while running:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                done, _ = ray.wait(list(running), timeout=left)
                if not done:
                    late = [(number, actor) for number, actor, _ in running.values()]
                    return answers | self._give_up(late, lost.keys() - answers.keys(), timeout)
                receive(done[0], *running.pop(done[0]))
            return answers

        def receive(reference: Any, number: int, actor: Any, share: Share) -> None:
            try:
                answers.update(judged(columns.unpack(ray.get(reference))))
            except ray.exceptions.RayTaskError as error:  # it raised outside any one client's work, and lives
                answers.update({client: Error(code=CLIENT_RAISED, reason=str(error)) for client in everyone(share)})
            except ray.exceptions.RayError as error:
                self._replace(number, actor)
                lost.update({client: lost[client] + 1 for client in everyone(share)})
                queues[number].extendleft([chunk] for chunk in reversed(share) if lost[chunk[0]] < 2)
                gone = [client for client in everyone(share) if lost[client] == 2]
                answers.update({client: Error(code=WORKER_LOST, reason=f"its worker was lost: {error}") for client in gone})
            send(number)

        for number in range(len(queues)):
            send(number)
        return wait

    def score(self, model: Callable) -> Callable[[], Score]:
        ray, home = self._ray, world(self.config)
        batch = home.config.evaluation.batch_size
        cuts = [len(home.test) * i // self.num_workers // batch * batch for i in range(self.num_workers)]
        parts = list(pairwise([*cuts, len(home.test)]))  # whole batches each
        given = packed(model)
        given = given if len(given) * len(parts) <= DIRECT else ray.put(given)
        asked = [actor.score.remote(self.config, given, *part) for actor, part in zip(self._actors, parts)]

        def together() -> Score:
            return Score.together([found_or(asked, part) for asked, part in zip(asked, parts)])

        def found_or(reference: Any, part: tuple[int, int]) -> Score:
            try:
                return ray.get(reference)
            except ray.exceptions.RayActorError:  # whoever was to do it has died of something else
                return on_test(home, model, *part)

        return together

    def peak_memory(self) -> list[int]:
        """The most memory that each actor has held, in KiB."""
        return self._ray.get([actor.peak_memory.remote() for actor in self._actors])

    def _replace(self, number: int, actor: Any) -> None:
        """A fresh actor in the place of one that is dead or past its time, unless another question to it has found that out already."""
        if self._actors[number] is actor:
            self._ray.kill(actor)
            (self._actors[number],) = make("engine", hire, self._ray, self._num_gpus, 1)

    def _give_up(self, late: Iterable[tuple[int, Any]], clients: Iterable[int], timeout: float | None) -> Answers:
        """Past the deadline: end the work that still runs, with its actors."""
        for number, actor in late:
            self._replace(number, actor)
        return {client: Error(code=TIMED_OUT, reason=f"no answer within {timeout} seconds (timeout)") for client in clients}

    def close(self) -> None:
        """Let the actors go; they and Ray stay for the next run of this process, and end with it."""
        dismiss(self._ray, self._num_gpus, self._actors)
        self._actors = []


class CohortGrid(ClientGrid):
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
