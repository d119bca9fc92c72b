"""How clients are asked: what a strategy must know of its run, and what happens where one of them fails."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from flwr.app import Message
from flwr.serverapp import Grid

from fedkd.errors import ClientFailure
from fedkd.federation import serialization
from fedkd.federation.server import Server
from fedkd.federation.system_heterogeneity import HOMOGENEOUS, Devices, RoundTiming

PendingReplies = Callable[[], list[Message]]
"""Waits for the replies to what was asked."""


@dataclass(frozen=True)
class Federation:
    """What a strategy must know of its run beside its own knobs.

    Args:
        server: the server, with the run's seed (rounds are split off it).
        clients_per_round: how many clients train in a round.
        on_client_failure: ``raise`` ends the run, ``retry`` asks again up to ``retries`` times and then ends it, ``drop``
            goes on with the others.
        retries: for ``retry``.
        evaluate_every: clients and server evaluate after every so many rounds, and after the last.
        devices: who takes part, and how long that takes; None: everybody is there, alike, and computes in no time.
    """

    server: Server
    clients_per_round: int
    on_client_failure: Literal["raise", "retry", "drop"] = "raise"
    retries: int = 2
    evaluate_every: int = 1
    devices: Devices | None = None

    def __post_init__(self) -> None:
        if self.devices is None:
            nothing = [0] * self.server.num_clients
            object.__setattr__(self, "devices", Devices(HOMOGENEOUS, self.server.seed, list(zip(nothing, nothing)), nothing))


def start_request(grid: Grid, messages: list[Message], timeout: float | None) -> PendingReplies | None:
    """Begin to ask; None where there is nothing to ask, or the grid can only be asked and waited for in one."""
    return grid.begin(messages, timeout=timeout) if messages and hasattr(grid, "begin") else None


def collect_replies(
    grid: Grid,
    messages: list[Message],
    timeout: float | None,
    server_round: int,
    policy: Federation,
    begun: PendingReplies | None = None,
) -> tuple[list[Message], int]:
    """Send, receive, and deal with failures as the policy says: the good replies in the order of clients, and how many failed.

    Args:
        grid: where ``messages`` go.
        messages: one for each client.
        timeout: seconds for each attempt.
        server_round: for the error.
        policy: says what a failure means.
        begun: waits for the replies of a first attempt that has begun already.

    Raises:
        ClientFailure: a client failed and the policy does not put up with it.
    """
    wanted, good, failures = messages, [], 0
    for attempt in range(1 + (policy.retries if policy.on_client_failure == "retry" else 0)):
        first = attempt == 0 and begun is not None
        replies = begun() if first else list(grid.send_and_receive(wanted, timeout=timeout)) if wanted else []
        answered = {r.metadata.src_node_id for r in replies if not r.has_error()}
        good += [r for r in replies if not r.has_error()]
        reasons = {r.metadata.src_node_id: r.error.reason for r in replies if r.has_error()}
        wanted = [m for m in wanted if m.metadata.dst_node_id not in answered]
        failures += len(wanted)
        if not wanted:
            break
    if wanted and (policy.on_client_failure != "drop" or not good):
        client = wanted[0].metadata.dst_node_id
        raise ClientFailure(
            f"{len(wanted)} of {len(messages)} clients failed in round {server_round} (on_client_failure={policy.on_client_failure}, "
            f"after {attempt + 1} attempt(s)); client {client} said:\n{reasons.get(client, 'nothing before the timeout')}"
        )
    return sorted(good, key=lambda r: r.metadata.src_node_id), failures


def round_timing(
    devices: Devices, server_round: int, num_chosen: int, asked: Sequence[Message], answered: Sequence[Message]
) -> RoundTiming:
    """A round by the simulated clock: ``num_chosen`` clients were wanted, those who had not dropped out were asked, and some answered."""
    received = dict(zip([message.metadata.dst_node_id for message in asked], serialization.message_bytes(asked)))
    sent = dict(zip([reply.metadata.src_node_id for reply in answered], serialization.message_bytes(answered)))
    return devices.round_timing(server_round, num_chosen, {client: (received[client], number) for client, number in sent.items()})
