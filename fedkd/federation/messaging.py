"""Messages to clients and their replies: what happens where a client fails, and how long a round takes on the simulated clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from flwr.app import Message
from flwr.serverapp import Grid

from fedkd.errors import ClientFailure
from fedkd.federation import serialization
from fedkd.federation.server import Server
from fedkd.federation.system_heterogeneity import Devices, RoundTiming

PendingReplies = Callable[[], list[Message]]
"""A function that waits for the replies to messages that were sent, and returns them."""


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
    """

    server: Server
    clients_per_round: int
    devices: Devices
    on_client_failure: Literal["raise", "retry", "drop"] = "raise"
    retries: int = 2
    evaluate_every: int = 1


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
) -> tuple[list[Message], int]:
    """Send messages, wait for the replies, and apply the failure policy.

    Args:
        grid: the grid that delivers the messages.
        messages: one message per client.
        timeout: seconds to wait in each attempt. None waits without limit.
        server_round: the round, for the error message.
        federation: the settings with the failure policy.
        pending: waits for the replies of a first attempt that :func:`start_sending` has begun.

    Returns:
        The replies without errors in the order of clients, and the number of failures over all attempts.

    Raises:
        ClientFailure: a client failed, and the policy does not allow the run to continue.
    """
    remaining, replies, num_failures = messages, [], 0
    reasons: dict[int, str] = {}
    num_attempts = 1 + (federation.retries if federation.on_client_failure == "retry" else 0)
    for attempt in range(num_attempts):
        if attempt == 0 and pending is not None:
            received = pending()
        else:
            received = list(grid.send_and_receive(remaining, timeout=timeout)) if remaining else []
        successful = {reply.metadata.src_node_id for reply in received if not reply.has_error()}
        replies += [reply for reply in received if not reply.has_error()]
        reasons = {reply.metadata.src_node_id: reply.error.reason or "" for reply in received if reply.has_error()}
        remaining = [message for message in remaining if message.metadata.dst_node_id not in successful]
        num_failures += len(remaining)
        if not remaining:
            break
    if remaining and (federation.on_client_failure != "drop" or not replies):
        client = remaining[0].metadata.dst_node_id
        raise ClientFailure(
            f"{len(remaining)} of {len(messages)} clients failed in round {server_round} "
            f"(on_client_failure={federation.on_client_failure}, after {attempt + 1} attempt(s)); "
            f"error of client {client}:\n{reasons.get(client, 'no reply before the timeout')}"
        )
    return sorted(replies, key=lambda reply: reply.metadata.src_node_id), num_failures


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
