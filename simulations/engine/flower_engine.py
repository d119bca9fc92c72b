"""FlowerGrid: clients run on the nodes of another Flower Grid, such as Flower's simulation runtime or SuperNodes of a deployment.

Replies of nodes are matched by the message that they answer, see :class:`MessageTracker`.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Generic, TypeVar

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedkd.errors import EngineError, one_line
from simulations.engine.base import ClientGrid, PendingResults
from simulations.engine.client_work import Assignment
from simulations.engine.worker import ClientResults, app_request, clients_of, group_by_client, parse_errors
from simulations.engine.worker_environment import (
    ENVIRONMENT,
    FLOWER_REMEDIES,
    Environment,
    check_environment,
    describe_environment,
    driver_modules,
    environment_request,
)

Key = TypeVar("Key")

PULL_SECONDS = 0.1
"""Seconds between two looks for replies."""


class MessageTracker(Generic[Key]):
    """Sends messages to nodes, and says which message a reply answers.

    Only ``reply_to_message_id`` tells that. The sender of an error about a node that is gone is the SuperLink, not the node.

    Args:
        inner: the grid with the nodes.

    Attributes:
        num_late_replies: replies to messages that nobody waited for any more.
        num_unknown_replies: replies to messages that were not sent here.
    """

    def __init__(self, inner: Grid) -> None:
        self._inner = inner
        self._open: dict[str, Key] = {}
        self._abandoned: set[str] = set()
        self.num_late_replies = self.num_unknown_replies = 0

    def send(self, messages: Mapping[Key, Message]) -> list[Key]:
        """Send messages without waiting for the replies.

        Args:
            messages: the messages by the key under which their replies are returned.

        Returns:
            The keys of the messages that were not accepted, as their node is not connected.
        """
        if not messages:
            return []
        accepted = set(self._inner.push_messages(list(messages.values())))
        ids = {message.metadata.message_id: key for key, message in messages.items()}
        self._open |= {number: key for number, key in ids.items() if number in accepted}
        return [key for number, key in ids.items() if number not in accepted]

    def receive(self) -> dict[Key, Message]:
        """The replies that have arrived since the last call, errors included, by key. Late and unknown replies are counted and dropped."""
        awaited = [*self._open, *self._abandoned]
        found: dict[Key, Message] = {}
        for reply in self._inner.pull_messages(awaited) if awaited else ():
            number = reply.metadata.reply_to_message_id
            if number in self._open:
                found[self._open.pop(number)] = reply
            elif number in self._abandoned:
                self._abandoned.remove(number)
                self.num_late_replies += not reply.has_error()  # an error says that no reply will follow
            else:
                self.num_unknown_replies += 1
        return found

    def wait(self, keys: Iterable[Key], timeout: float | None) -> Iterator[tuple[Key, Message]]:
        """Each reply to the messages ``keys`` as it arrives, until all have come or the timeout passes.

        Args:
            keys: keys of messages that were accepted.
            timeout: seconds to wait. None waits without limit.
        """
        deadline, missing = None if timeout is None else time.monotonic() + timeout, set(keys)
        while True:
            found = self.receive()
            missing -= found.keys()
            yield from found.items()
            if not missing or (deadline is not None and time.monotonic() >= deadline):
                self.abandon(missing)
                return
            time.sleep(PULL_SECONDS)

    def abandon(self, keys: Iterable[Key]) -> None:
        """Wait no more for the replies to the messages ``keys``. Those that come all the same are counted as late."""
        gone = set(keys)
        ids = {number for number, key in self._open.items() if key in gone}
        self._abandoned |= ids
        for number in ids:
            del self._open[number]

    def unused(self) -> str:
        """A warning with the numbers of late and unknown replies, empty if there are none."""
        if not (self.num_late_replies or self.num_unknown_replies):
            return ""
        late, unknown = self.num_late_replies, self.num_unknown_replies
        return f"warning: replies that were not used: {late} that came after the timeout, {unknown} to messages that this run has not sent"


class FlowerGrid(ClientGrid):
    """Clients run on the nodes of another grid. Each node receives one message per phase, which holds all of its clients.

    A node proves before its first work that it has the environment of this process. A node that joins later and does not is not used.

    Args:
        num_clients: number of clients N.
        config: the resolved configuration as YAML.
        inner: the grid with the nodes.
        patience: seconds to wait for the first node, and for the environments of nodes.

    Raises:
        TimeoutError: no node has connected in this time.
    """

    def __init__(self, num_clients: int, config: str, inner: Grid, patience: float = 120.0) -> None:
        super().__init__(num_clients, config)
        self._inner, self._tracker, self._phases = inner, MessageTracker[tuple[int, int]](inner), count()
        self._patience = patience
        self._environments: dict[int, Environment] = {}
        self._refused: set[int] = set()
        self._ours: Environment | None = None
        self._modules = driver_modules(config)
        deadline = time.monotonic() + patience
        while not list(inner.get_node_ids()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no node has connected within {patience} seconds")
            time.sleep(0.1)

    @property
    def num_workers(self) -> int:  # type: ignore[override]  # nodes can connect at any time
        """The number of nodes that are connected now."""
        return max(1, len(self._nodes()))

    def environments(self) -> dict[str, Environment]:
        """See :meth:`simulations.engine.base.ClientGrid.environments`."""
        return {environment["node"]: environment for environment in self._environments.values()}

    def start_work(self, kind: str, content: RecordDict, assignments: list[Assignment], timeout: float | None) -> PendingResults:
        """See :meth:`simulations.engine.base.ClientGrid.start_work`. The messages are sent when their results are waited for."""
        self._verify()
        by_node: dict[int, Assignment] = {}
        nodes = [node for node in self._nodes() if node in self._environments]
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
            for node, reply in self._exchange(messages, timeout):
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

    def _nodes(self) -> list[int]:
        """The nodes that are connected now, without those of another environment."""
        return sorted(set(self._inner.get_node_ids()) - self._refused)

    def _exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[tuple[int, Message]]:
        """Send a message to each node, and yield the replies as they arrive, until all have come or the timeout passes."""
        phase = next(self._phases)
        lost = self._tracker.send({(phase, node): message for node, message in messages.items()})
        for (_, node), reply in self._tracker.wait({(phase, node) for node in messages}.difference(lost), timeout):
            yield node, reply

    def _verify(self) -> None:
        """Ask nodes that have joined for their environments. A node that does not answer gets no work.

        Raises:
            EngineError: no node has had work yet, and one has another environment than this process, or none answers.
        """
        new, is_begin = set(self._nodes()) - self._environments.keys(), not self._environments
        if not new:
            return
        content = RecordDict({ENVIRONMENT: environment_request(self.config, self._modules)})
        messages = {node: Message(content, dst_node_id=node, message_type=MessageType.QUERY) for node in sorted(new)}
        self._ours = self._ours or describe_environment(self.config, self._modules)
        reasons = dict.fromkeys(messages, f"no answer within {self._patience:g} seconds")
        for node, reply in self._exchange(messages, self._patience):
            if reply.has_error():
                reasons[node] = one_line(reply.error.reason)
                continue
            theirs = json.loads(str(reply.content.config_records[ENVIRONMENT][ENVIRONMENT]))
            try:
                check_environment(self._ours, theirs, remedies=FLOWER_REMEDIES)
            except EngineError as error:
                if is_begin:
                    raise
                reasons[node] = one_line(error)
                continue
            self._environments[node] = theirs
            del reasons[node]
        self._refused |= reasons.keys()
        for node, reason in reasons.items():
            print(f"warning: node {node} gets no work: {reason}", file=sys.stderr, flush=True)
        if not self._environments:
            raise EngineError("no node answers, so no client can train (see the warnings above)")
