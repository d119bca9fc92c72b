"""Messages to the nodes of a Flower grid, and the replies to them, matched by the message that they answer."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

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
