"""Flower's side of every strategy, written once: what is sent each round, and the loop.

It speaks records and messages and knows nothing of an algorithm; :class:`fedkd.strategy.Strategy` gives it the hooks.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor

from fedkd import wire
from fedkd.aggregate import own_labels
from fedkd.site import Server
from fedkd.types import State, Update


class ClientFailure(RuntimeError):
    """A client failed and the run's policy does not put up with it."""


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
    """

    server: Server
    clients_per_round: int
    on_client_failure: Literal["raise", "retry", "drop"] = "raise"
    retries: int = 2
    evaluate_every: int = 1


@dataclass(frozen=True)
class Round:
    """One finished round, as ``start`` hands it to ``on_round``: what there is to record of it."""

    number: int
    arrays: ArrayRecord
    metrics: dict[str, float]
    seconds: dict[str, float]
    trained: Sequence[Message]
    evaluated: Sequence[Message]
    num_failures: int
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Aggregated:
    """A round between ``update`` and ``refine``."""

    server: Server
    state: State
    updates: Sequence[Update]
    server_round: int
    metrics: dict[str, float | Tensor]


class Rounds(FlowerStrategy):
    """Flower's methods in terms of the hooks ``init``, ``update``, ``refine``, ``weights`` and ``shares``."""

    federation: Federation | None
    clients_evaluate: ClassVar[bool] = True
    """Clients measure the model that they would begin from; otherwise the strategy's ``ensemble`` is measured on their shards."""

    def summary(self) -> None:
        """Flower prints this at the start; a run folder holds the resolved configuration instead."""

    def cohort(self, node_ids: Iterable[int], server_round: int) -> list[int]:
        """The clients of a round, ascending: a draw that depends on the seed and the round alone."""
        ids = sorted(node_ids)
        rng = (self.federation.server.seed / "round" / server_round / "cohort").numpy()
        return sorted(rng.choice(ids, self.federation.clients_per_round, replace=False).tolist())

    def broadcast(self, arrays: ArrayRecord, server_round: int) -> RecordDict:
        """What every client of a phase receives: the shared parts of the state. One object for all messages."""
        shared = ArrayRecord({name: array for name, array in arrays.items() if name.partition(":")[0] in self.shares})
        return RecordDict({wire.SHARED: shared, "config": ConfigRecord({"server-round": server_round})})

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """One message for each client of the round's cohort."""
        self._arrays = arrays
        content = self.broadcast(arrays, server_round)
        ids = self.cohort(grid.get_node_ids(), server_round)
        return [Message(content, message_type=MessageType.TRAIN, dst_node_id=i) for i in ids]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The state after the round; replies with errors are left out (``start`` has dealt with them by then)."""
        replies = [reply for reply in replies if not reply.has_error()]
        return self.refined(self.aggregated(server_round, replies)) if replies else (None, None)

    def aggregated(self, server_round: int, replies: Iterable[Message]) -> "Aggregated":
        """The state after ``update``."""
        server, device = self.federation.server, self.federation.server.device
        server = replace(server, seed=server.seed / "round" / server_round / "server")
        updates = sorted((wire.to_update(reply) for reply in replies), key=lambda u: u.client)
        updates = [replace(u, state={p: {k: t.to(device) for k, t in ts.items()} for p, ts in u.state.items()}) for u in updates]
        state, metrics = self.update(server, wire.from_record(self._arrays, device), updates, server_round)
        loss = sum(w * u.metrics["loss"] for w, u in zip(self.weights(updates), updates))
        return Aggregated(server, state, updates, server_round, {"train_loss": loss, **metrics})

    def refined(self, after: "Aggregated") -> tuple[ArrayRecord, MetricRecord]:
        """The state after ``refine`` too."""
        state, metrics = self.refine(after.server, after.state, after.updates, after.server_round)
        return wire.to_record(state), MetricRecord({name: float(value) for name, value in {**after.metrics, **metrics}.items()})

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """One message for every client there is: the public code's metric is over all of them."""
        if not self.clients_evaluate:
            return []
        content = self.broadcast(arrays, server_round)
        return [Message(content, message_type=MessageType.EVALUATE, dst_node_id=i) for i in sorted(grid.get_node_ids())]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Accuracy over all clients' own test examples (micro average), that of the worst tenth, and the spread."""
        counts = [next(iter(r.content.metric_records.values())) for r in replies if not r.has_error()]
        scores = own_labels([(int(c["num-examples"]), int(c["num-correct"])) for c in counts])
        return None if scores is None else MetricRecord(scores)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | Callable[[], MetricRecord] | None] | None = None,
        *,
        start_round: int = 1,
        on_round: Callable[[Round], None] | None = None,
    ) -> Result:
        """Flower's loop, and: it can begin at ``start_round``, it knows failures, it hands every round to ``on_round``.

        Evaluation begins before ``refine``: the clients', and that of ``evaluate_fn`` where it returns a function that waits for it.

        Raises:
            ClientFailure: a client failed and the policy does not put up with it.
        """
        assert self.federation is not None, "give the strategy its federation before starting it"
        arrays = wire.to_record(self.init(self.federation.server)) if initial_arrays is None else initial_arrays
        result = Result()
        result.arrays = arrays
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        for number in range(start_round, num_rounds + 1):
            seconds = dict.fromkeys(("local", "server", "evaluate"), 0.0)
            with clock(seconds, "local"):
                messages = list(self.configure_train(number, arrays, train_config, grid))
                trained, num_failures = collect(grid, messages, timeout, number, self.federation)
            with clock(seconds, "server"):
                after = self.aggregated(number, trained)
                if hasattr(grid, "commit"):
                    grid.commit()
            due, scores = number % self.federation.evaluate_every == 0 or number == num_rounds, MetricRecord()
            with clock(seconds, "evaluate"):
                before = wire.to_record(after.state) if due else None
                asked = list(self.configure_evaluate(number, before, evaluate_config, grid)) if due else []
                begun = grid.begin(asked, timeout=timeout) if asked and hasattr(grid, "begin") else None
                judged = evaluate_fn(number, before) if due and evaluate_fn else None
            with clock(seconds, "server"):  # while the clients evaluate
                arrays, metrics = self.refined(after)
            with clock(seconds, "evaluate"):
                evaluated, lost = collect(grid, asked, timeout, number, self.federation, begun)
                num_failures += lost
                scores.update((judged() if callable(judged) else judged) or {})
                scores.update(self.aggregate_evaluate(number, evaluated) or {})
            result.arrays, result.train_metrics_clientapp[number] = arrays, metrics
            result.evaluate_metrics_serverapp[number] = scores
            if on_round:
                up, down = wire.payload(trained), wire.payload(messages)
                on_round(Round(number, arrays, {**metrics, **scores}, seconds, trained, evaluated, num_failures, up, down))
        return result


def collect(
    grid: Grid,
    messages: list[Message],
    timeout: float | None,
    server_round: int,
    policy: Federation,
    begun: Callable[[], list[Message]] | None = None,
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


@contextmanager
def clock(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall time of the block to that of ``phase``."""
    begin = time.perf_counter()
    yield
    seconds[phase] += time.perf_counter() - begin
