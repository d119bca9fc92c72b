"""Flower's side of every strategy, written once: what is sent each round, and the loop.

It speaks records and messages and knows nothing of an algorithm; :class:`fedkd.strategy.Strategy` gives it the hooks.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor

from fedkd.federation import serialization
from fedkd.federation.messaging import Federation, PendingReplies, collect_replies, round_timing, start_request
from fedkd.federation.server import Server
from fedkd.metrics.accuracy import local_test_metrics, new_client_metrics
from fedkd.types import State, Update


@dataclass(frozen=True)
class Round:
    """One finished round, as ``start`` hands it to ``on_round``: what there is to record of it.

    ``trained`` are the answers that the round has used; ``simulated_seconds`` is in seconds since the beginning of the run.
    """

    number: int
    arrays: ArrayRecord
    metrics: dict[str, float]
    seconds: dict[str, float]
    trained: Sequence[Message]
    evaluated: Sequence[Message]
    num_failures: int
    num_dropouts: int
    num_missed_deadline: int
    simulated_seconds: float
    uplink_bytes: int
    downlink_bytes: int


@dataclass(frozen=True)
class Aggregated:
    """A round between ``aggregate`` and ``server_training``."""

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
    evaluating: PendingReplies | None
    judging: MetricRecord | Callable[[], MetricRecord] | None


class ServerLoop(FlowerStrategy):
    """Flower's methods in terms of the hooks ``init_server``, ``aggregate``, ``server_training``, ``aggregation_weights`` and ``shares``."""

    federation: Federation | None
    clients_evaluate: ClassVar[bool] = True
    """Clients measure the model that they would begin from; otherwise the strategy's ``client_ensemble`` is measured on their shards."""

    def summary(self) -> None:
        """Flower prints this at the start; a run folder holds the resolved configuration instead."""

    def cohort(self, node_ids: Iterable[int], server_round: int) -> list[int]:
        """The clients that are chosen for a round, ascending."""
        return self.federation.devices.sample_clients(node_ids, self.federation.clients_per_round, server_round)

    def broadcast(self, arrays: ArrayRecord, server_round: int) -> RecordDict:
        """What every client of a phase receives: the shared parts of the state. One object for all messages."""
        shared = ArrayRecord({name: array for name, array in arrays.items() if name.partition(":")[0] in self.broadcast_parts})
        return RecordDict({serialization.BROADCAST: shared, "config": ConfigRecord({"server-round": server_round})})

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """One message for each client of the round's cohort, but for those that drop out."""
        self._arrays, self._cohort = arrays, self.cohort(grid.get_node_ids(), server_round)
        content, devices = self.broadcast(arrays, server_round), self.federation.devices
        ids = [i for i in self._cohort if not devices.drops_out(i, server_round)]
        return [Message(content, message_type=MessageType.TRAIN, dst_node_id=i) for i in ids]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The state after the round; replies with errors are left out (``start`` has dealt with them by then)."""
        replies = [reply for reply in replies if not reply.has_error()]
        return self.refined(self.aggregated(server_round, replies)) if replies else (None, None)

    def aggregated(self, server_round: int, replies: Iterable[Message]) -> "Aggregated":
        """The state after ``aggregate``; as it was where there is nothing to update it with."""
        server, device = self.federation.server, self.federation.server.device
        server = replace(server, seed=server.seed / "round" / server_round / "server")
        updates = sorted((serialization.to_update(reply) for reply in replies), key=lambda u: u.client)
        updates = [replace(u, state={p: {k: t.to(device) for k, t in ts.items()} for p, ts in u.state.items()}) for u in updates]
        state = serialization.from_record(self._arrays, device)
        if not updates:
            return Aggregated(server, state, updates, server_round, {})
        state, metrics = self.aggregate(server, state, updates, server_round)
        weights = self.aggregation_weights(updates)
        terms = {f"train_{name}": sum(w * u.metrics[name] for w, u in zip(weights, updates)) for name in updates[0].metrics}
        return Aggregated(server, state, updates, server_round, {**terms, **metrics})

    def refined(self, after: "Aggregated") -> tuple[ArrayRecord, MetricRecord]:
        """The state after ``server_training`` too, which a round without updates goes without."""
        state, metrics = after.state, {}
        if after.updates:
            state, metrics = self.server_training(after.server, after.state, after.updates, after.server_round)
        return serialization.to_record(state), MetricRecord({name: float(value) for name, value in {**after.metrics, **metrics}.items()})

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """One message for every client there is: the public code's metric is over all of them."""
        if not self.clients_evaluate:
            return []
        content = self.broadcast(arrays, server_round)
        return [Message(content, message_type=MessageType.EVALUATE, dst_node_id=i) for i in sorted(grid.get_node_ids())]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Accuracy over all clients' own test examples (micro average), that of the worst tenth, the spread, and accuracy over newcomers'."""
        records = {r.metadata.src_node_id: next(iter(r.content.metric_records.values())) for r in replies if not r.has_error()}
        counts = {client: (int(record["num-examples"]), int(record["num-correct"])) for client, record in records.items()}
        scores = local_test_metrics(list(counts.values()))
        return None if scores is None else MetricRecord({**scores, **new_client_metrics(counts, self.federation.devices.new_clients)})

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
        simulated_seconds: float = 0.0,
        on_round: Callable[[Round], None] | None = None,
    ) -> Result:
        """Flower's loop, and: it can begin at ``start_round``, ``simulated_seconds`` seconds after the first began; it knows failures, clients
        that drop out or are late, and rounds in which nobody is left; it hands every round to ``on_round``.

        A round's evaluation, the clients' and that of ``evaluate_fn`` where it returns a function that waits for it, goes on while the
        server refines and while the next round's clients begin to train: nobody waits for it but ``on_round``. On grids that cannot
        be asked two things at once one follows the other.

        Raises:
            ClientFailure: a client failed and the policy does not put up with it.
        """
        assert self.federation is not None, "give the strategy its federation before starting it"
        arrays = serialization.to_record(self.init_server(self.federation.server)) if initial_arrays is None else initial_arrays
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
            seconds = dict.fromkeys(("local_training", "server", "evaluation"), 0.0)
            with clock(seconds, "local_training"):
                messages = list(self.configure_train(number, arrays, train_config, grid))
                training = start_request(grid, messages, timeout)
            conclude()  # the last round, while this one's clients train
            with clock(seconds, "local_training"):
                answered, num_failures = collect_replies(grid, messages, timeout, number, self.federation, training)
            told = round_timing(self.federation.devices, number, len(self._cohort), messages, answered)
            simulated_seconds += told.seconds
            trained = [reply for reply in answered if reply.metadata.src_node_id not in told.late]
            with clock(seconds, "server"):
                after = self.aggregated(number, trained)
                if hasattr(grid, "commit"):
                    grid.commit(reply.metadata.src_node_id for reply in trained)
            with clock(seconds, "evaluation"):
                due = number % self.federation.evaluate_every == 0 or number == num_rounds
                before = serialization.to_record(after.state) if due else None
                asked = list(self.configure_evaluate(number, before, evaluate_config, grid)) if due else []
                evaluating = start_request(grid, asked, timeout)
                judging = evaluate_fn(number, before) if due and evaluate_fn else None
            with clock(seconds, "server"):
                arrays, metrics = self.refined(after)
            done = Round(
                number, arrays, dict(metrics), seconds, trained, [], num_failures, len(self._cohort) - len(messages), len(told.late),
                simulated_seconds, serialization.payload_bytes(trained), serialization.payload_bytes(messages),
            )  # fmt: skip
            under_way = Evaluation(done, asked, evaluating, judging)
        conclude()
        return result

    def evaluated(self, grid: Grid, under_way: "Evaluation", timeout: float) -> tuple[Round, MetricRecord]:
        """The round whose evaluation is under way, and what that gives, once it is there.

        Raises:
            ClientFailure: a client failed and the policy does not put up with it.
        """
        done, judging, scores = under_way.done, under_way.judging, MetricRecord()
        with clock(done.seconds, "evaluation"):
            replies, lost = collect_replies(grid, under_way.asked, timeout, done.number, self.federation, under_way.evaluating)
            scores.update((judging() if callable(judging) else judging) or {})
            scores.update(self.aggregate_evaluate(done.number, replies) or {})
        return replace(done, evaluated=replies, num_failures=done.num_failures + lost), scores


@contextmanager
def clock(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall time of the block to that of ``phase``."""
    begin = time.perf_counter()
    yield
    seconds[phase] += time.perf_counter() - begin
