"""A Flower grid in this process whose nodes run a ClientApp, and which can lose nodes, messages and replies as a SuperLink does."""

from collections.abc import Callable, Iterable
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from simulations.engine.base import BlockingGrid
from simulations.engine.flower_compat import set_task_identity

SUPERLINK = 1
"""The node id of a SuperLink, which sends the errors about nodes that are gone."""

Fate = Callable[[Message], str]
"""What becomes of a message: ``answered``; ``lost``, without any reply; ``late``, answered at the next call of ``release``; ``error``, an
error of the SuperLink."""


class FakeNodes(BlockingGrid):
    """The grid. A message is answered when it is pushed.

    Args:
        app: the ClientApp of all nodes.
        node_configs: the configuration of each node, by node id.
        fate: what becomes of a message.
        run_config: the run configuration of all nodes.
    """

    def __init__(self, app: ClientApp, node_configs: dict[int, dict], fate: Fate = lambda message: "answered", run_config=None) -> None:
        super().__init__()
        set_task_identity()
        self.app, self.fate, self.run_config = app, fate, run_config or {}
        self.contexts = {}
        for node, config in node_configs.items():
            self.connect(node, config)
        self.replies: dict[str, Message] = {}
        self.late: dict[str, Message] = {}
        self.extra: list[Message] = []
        self._ids = count(1)

    def connect(self, node: int, node_config: dict) -> None:
        """Let a node join, with an empty context, as a SuperNode that has just started."""
        self.contexts[node] = Context(run_id=1, node_id=node, node_config=node_config, state=RecordDict(), run_config=self.run_config)

    def disconnect(self, node: int) -> None:
        """Lose a node and its context."""
        del self.contexts[node]

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        ids: list[str | None] = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = number = str(next(self._ids))
            node = message.metadata.dst_node_id
            if node not in self.contexts:
                ids.append(None)
                continue
            ids.append(number)
            fate = self.fate(message)
            if fate == "error":
                reply = Message(Error(code=5, reason="the node is unavailable"), reply_to=message)
                reply.metadata.__dict__["_src_node_id"] = SUPERLINK
                self.replies[number] = reply
            elif fate in ("answered", "late"):
                (self.replies if fate == "answered" else self.late)[number] = self.app(message, self.contexts[node])
        return ids

    def release(self) -> None:
        """Let the late replies arrive."""
        self.replies |= self.late
        self.late.clear()

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = [self.replies.pop(number) for number in list(message_ids) if number in self.replies]
        found, self.extra = [*found, *self.extra], []
        return found

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("grids of fedkd match replies themselves")

    def set_run(self, run) -> None:
        self._run = run

    @property
    def run(self):
        return self._run
