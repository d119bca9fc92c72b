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

Waiting = Callable[[], list[Message]]
"""Waits for the replies to what was asked."""


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


@dataclass(frozen=True)
class Evaluation:
    """A round that is done but for its evaluation: the clients', and the server's where that goes on too."""

    done: Round
    asked: list[Message]
    evaluating: Waiting | None
    judging: MetricRecord | Callable[[], MetricRecord] | None


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

        A round's evaluation, the clients' and that of ``evaluate_fn`` where it returns a function that waits for it, goes on while the
        server refines and while the next round's clients begin to train: nobody waits for it but ``on_round``. On grids that cannot
        be asked two things at once one follows the other.

        Raises:
            ClientFailure: a client failed and the policy does not put up with it.
        """
        assert self.federation is not None, "give the strategy its federation before starting it"
        arrays = wire.to_record(self.init(self.federation.server)) if initial_arrays is None else initial_arrays
        result = Result()
        result.arrays = arrays
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        under_way: Evaluation | None = None

        def conclude() -> None:
            if under_way is not None:
                done, scores = self.evaluated(grid, under_way, timeout)
                result.arrays, result.train_metrics_clientapp[done.number] = done.arrays, MetricRecord(done.metrics)
                result.evaluate_metrics_serverapp[done.number] = scores
                if on_round:
                    on_round(replace(done, metrics={**done.metrics, **scores}))

        for number in range(start_round, num_rounds + 1):
            seconds = dict.fromkeys(("local", "server", "evaluate"), 0.0)
            with clock(seconds, "local"):
                messages = list(self.configure_train(number, arrays, train_config, grid))
                training = begin(grid, messages, timeout)
            conclude()  # the last round, while this one's clients train
            with clock(seconds, "local"):
                trained, num_failures = collect(grid, messages, timeout, number, self.federation, training)
            with clock(seconds, "server"):
                after = self.aggregated(number, trained)
                if hasattr(grid, "commit"):
                    grid.commit()
            with clock(seconds, "evaluate"):
                due = number % self.federation.evaluate_every == 0 or number == num_rounds
                before = wire.to_record(after.state) if due else None
                asked = list(self.configure_evaluate(number, before, evaluate_config, grid)) if due else []
                evaluating = begin(grid, asked, timeout)
                judging = evaluate_fn(number, before) if due and evaluate_fn else None
            with clock(seconds, "server"):
                arrays, metrics = self.refined(after)
            up, down = wire.payload(trained), wire.payload(messages)
            done = Round(number, arrays, dict(metrics), seconds, trained, [], num_failures, up, down)
            under_way = Evaluation(done, asked, evaluating, judging)
        conclude()
        return result

    def evaluated(self, grid: Grid, under_way: "Evaluation", timeout: float) -> tuple[Round, MetricRecord]:
        """The round whose evaluation is under way, and what that gives, once it is there.

        Raises:
            ClientFailure: a client failed and the policy does not put up with it.
        """
        done, judging, scores = under_way.done, under_way.judging, MetricRecord()
        with clock(done.seconds, "evaluate"):
            replies, lost = collect(grid, under_way.asked, timeout, done.number, self.federation, under_way.evaluating)
            scores.update((judging() if callable(judging) else judging) or {})
            scores.update(self.aggregate_evaluate(done.number, replies) or {})
        return replace(done, evaluated=replies, num_failures=done.num_failures + lost), scores


def begin(grid: Grid, messages: list[Message], timeout: float | None) -> Waiting | None:
    """Begin to ask; None where there is nothing to ask, or the grid can only be asked and waited for in one."""
    return grid.begin(messages, timeout=timeout) if messages and hasattr(grid, "begin") else None


def collect(
    grid: Grid,
    messages: list[Message],
    timeout: float | None,
    server_round: int,
    policy: Federation,
    begun: Waiting | None = None,
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
