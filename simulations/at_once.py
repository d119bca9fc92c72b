"""A Flower Grid that knows one verb, to send and receive, and has the others of it."""

from collections.abc import Iterable
from itertools import count

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid


class AtOnce(Grid):
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
