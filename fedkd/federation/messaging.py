"""Messages to clients and their replies: what happens where a client fails, and how long a round takes on the simulated clock."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flwr.app import Message
from flwr.serverapp import Grid

from fedkd.errors import ClientFailure, DivergedError
from fedkd.federation import serialization
from fedkd.federation.server import Server
from fedkd.federation.system_heterogeneity import Devices, RoundTiming
from fedkd.federation.update_check import ReplyCheck

PendingReplies = Callable[[], list[Message]]
"""A function that waits for the replies to messages that were sent, and returns them."""

WORKER_LOST, CLIENT_RAISED, TIMED_OUT, DIVERGED, REFUSED = 0, 2, 3, 100, 101
"""Codes of failures: the worker process of a client ended, the client raised an exception, the timeout passed, the client's loss or update
is not finite, or its reply is not what was asked for. Flower defines the first two."""


@dataclass(frozen=True)
class FailedReply:
    """A failure of one client in one attempt.

    Args:
        client: the client.
        code: one of the codes above.
        reason: what went wrong. Of an exception, the traceback.
        loss: the loss that is not finite, of a client that diverged. None where it is not known.
    """

    client: int
    code: int
    reason: str
    loss: float | None = None

    @property
    def line(self) -> str:
        """The last line of the reason."""
        return ([line for line in self.reason.splitlines() if line.strip()] or [""])[-1].strip()


@dataclass(frozen=True)
class Federation:
    """The settings of a run that a strategy needs in addition to its own parameters.

    Args:
        server: the server with the run's seed, from which the seeds of rounds are derived.
        clients_per_round: number of clients in the cohort of a round.
        devices: the devices of all clients, which sample cohorts and simulate system heterogeneity.
        on_client_failure: ``raise`` ends the run, ``retry`` sends the message again up to ``retries`` times and then ends the run,
            ``drop`` continues with the other clients.
        retries: number of further attempts with ``retry``, >= 0.
        evaluate_every: rounds between two evaluations, >= 1. The last round is always evaluated.
        check: the check of every reply. A reply that it refuses is a failure of its client. None accepts all replies.
        evaluated_clients: ``round -> clients`` whose local test sets are evaluated. None evaluates all clients.
        by_round: ``round -> settings`` where they differ by round, as the data of clients drift. None: they are the same in all rounds.
    """

    server: Server
    clients_per_round: int
    devices: Devices
    on_client_failure: Literal["raise", "retry", "drop"] = "raise"
    retries: int = 2
    evaluate_every: int = 1
    check: ReplyCheck | None = None
    evaluated_clients: Callable[[int], Collection[int]] | None = None
    by_round: Callable[[int], "Federation"] | None = None

    def at(self, server_round: int) -> "Federation":
        """The settings in a round."""
        return self if self.by_round is None else self.by_round(server_round)


def start_sending(grid: Grid, messages: list[Message], timeout: float | None) -> PendingReplies | None:
    """Send messages without waiting for the replies.

    Args:
        grid: the grid. Only grids of this project have the method ``send``, which does not wait.
        messages: one message per client.
        timeout: seconds to wait for replies. None waits without limit.

    Returns:
        A function that waits for the replies. None if there are no messages, or if the grid can only send and wait in one call.
    """
    return grid.send(messages, timeout=timeout) if messages and hasattr(grid, "send") else None


def collect_replies(
    grid: Grid,
    messages: list[Message],
    timeout: float | None,
    server_round: int,
    federation: Federation,
    pending: PendingReplies | None = None,
) -> tuple[list[Message], list[FailedReply]]:
    """Send messages, wait for the replies, check them, and apply the failure policy.

    Args:
        grid: the grid that delivers the messages.
        messages: one message per client.
        timeout: seconds to wait in each attempt. None waits without limit.
        server_round: the round, for the error message.
        federation: the settings with the failure policy.
        pending: waits for the replies of a first attempt that :func:`start_sending` has begun.

    Returns:
        The sound replies in the order of clients, and the failures of all attempts.

    Raises:
        DivergedError: a client diverged, and the policy does not allow the run to continue.
        ClientFailure: a client failed for another reason, and the policy does not allow the run to continue.
    """
    remaining, replies, failures = messages, list[Message](), list[FailedReply]()
    num_attempts = 1 + (federation.retries if federation.on_client_failure == "retry" else 0)
    for attempt in range(1, num_attempts + 1):
        if attempt == 1 and pending is not None:
            received = pending()
        else:
            received = list(grid.send_and_receive(remaining, timeout=timeout)) if remaining else []
        by_client = {reply.metadata.src_node_id: reply for reply in received}
        failed = [one for message in remaining if (one := find_failure(grid, message, by_client, federation.check))]
        failures += failed
        bad = {failure.client for failure in failed}
        replies += [by_client[message.metadata.dst_node_id] for message in remaining if message.metadata.dst_node_id not in bad]
        remaining = [message for message in remaining if message.metadata.dst_node_id in bad]
        if not remaining:
            break
    if remaining and (federation.on_client_failure != "drop" or not replies):
        raise failure_of_round(failed, len(messages), server_round, f"{federation.on_client_failure}, after {attempt} attempt(s)")
    return sorted(replies, key=lambda reply: reply.metadata.src_node_id), failures


def find_failure(grid: Grid, message: Message, replies: Mapping[int, Message], check: ReplyCheck | None) -> FailedReply | None:
    """The failure of the client of ``message``: no reply, an error, or a reply that the check refuses. None for a sound reply."""
    client = message.metadata.dst_node_id
    reply = replies.get(client)
    if reply is None:
        return FailedReply(client, TIMED_OUT, "no reply before the timeout")
    if reply.has_error():
        code, reason = reply.error.code, reply.error.reason or ""
        first, _, rest = reason.partition(" ")
        is_loss = code == DIVERGED and first in ("nan", "inf", "-inf")  # an error of Flower has no field for the loss
        return FailedReply(client, code, rest, float(first)) if is_loss else FailedReply(client, code, reason)
    state = grid.new_client_state(client) if hasattr(grid, "new_client_state") else None
    refusal = None if check is None else check(message, reply, state)
    return None if refusal is None else FailedReply(client, DIVERGED if refusal.diverged else REFUSED, refusal.reason, refusal.loss)


def failure_of_round(failed: Sequence[FailedReply], num_messages: int, server_round: int, policy: str) -> DivergedError | ClientFailure:
    """The error that ends a run. The traceback of a client that raised an exception is its note.

    Args:
        failed: the failures of the last attempt.
        num_messages: number of clients that were asked.
        server_round: 1, 2, ...
        policy: the failure policy and the number of attempts, for the message.
    """
    first = next((failure for failure in failed if failure.code == DIVERGED), failed[0])
    if first.code == DIVERGED:
        text = f"{len(failed)} of {num_messages} clients failed in round {server_round}; client {first.client} diverged: {first.line}"
        return DivergedError(text, round=server_round, client=first.client, loss=first.loss)
    error = ClientFailure(
        f"{len(failed)} of {num_messages} clients failed in round {server_round} (on_client_failure={policy}); "
        f"error of client {first.client}: {first.line}",
        is_transient=first.code in (WORKER_LOST, TIMED_OUT),
    )
    if first.reason.strip() != first.line:  # a traceback
        error.add_note(first.reason)
    return error


def round_timing(
    devices: Devices, server_round: int, num_sampled: int, messages: Sequence[Message], replies: Sequence[Message]
) -> RoundTiming:
    """The duration of a round on the simulated clock, and the clients that missed the deadline.

    Args:
        devices: the devices of all clients.
        server_round: 1, 2, ...
        num_sampled: number of clients in the cohort.
        messages: the messages to the clients that did not drop out.
        replies: the replies without errors.
    """
    received = dict(zip([message.metadata.dst_node_id for message in messages], serialization.message_bytes(messages)))
    sent = dict(zip([reply.metadata.src_node_id for reply in replies], serialization.message_bytes(replies)))
    return devices.round_timing(server_round, num_sampled, {client: (received[client], size) for client, size in sent.items()})
