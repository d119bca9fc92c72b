"""The loop over server rounds, and the methods that Flower expects of a strategy.

This module creates and reads messages and contains no algorithm. :class:`fedkd.strategy.Strategy` implements the hooks.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor

from fedkd.errors import DivergedError
from fedkd.federation import serialization
from fedkd.federation.aggregators import Aggregator, Mean
from fedkd.federation.messaging import FailedReply, Federation, PendingReplies, collect_replies, round_timing, start_sending
from fedkd.federation.server import Server
from fedkd.federation.server_optimizers import NoServerOptimizer, ServerOptimizer
from fedkd.federation.update_check import unsound_names
from fedkd.metrics.accuracy import local_test_metrics, new_client_metrics, other_predictions
from fedkd.training.functional_model import keep_frozen
from fedkd.training.step_counter import StepCount, StepCounter
from fedkd.types import Metrics, State, Update

MetricValues = dict[str, int | float | list[int] | list[float]]
"""Metrics by name, as Flower's MetricRecord holds them."""


@dataclass(frozen=True)
class Round:
    """A finished round, as ``ServerLoop.start`` passes it to ``on_round``.

    Args:
        number: the server round, 1, 2, ...
        arrays: the server's state after the round.
        metrics: the metrics of training and evaluation by name.
        seconds: wall-clock time in seconds of the phases ``local_training``, ``server`` and ``evaluation``.
        train_replies: the training replies that the server has aggregated.
        evaluate_replies: the clients' evaluation replies. Empty in a round without evaluation.
        failures: the failures of clients by phase, ``training`` and ``evaluation``. Each attempt is one.
        num_dropouts: sampled clients that dropped out.
        num_missed_deadline: clients whose update arrived after the deadline.
        simulated_seconds: simulated time in seconds since the beginning of the run.
        uplink_bytes: bytes of the aggregated updates.
        downlink_bytes: bytes of all broadcasts.
    """

    number: int
    arrays: ArrayRecord
    metrics: MetricValues
    seconds: dict[str, float]
    train_replies: Sequence[Message]
    evaluate_replies: Sequence[Message]
    failures: dict[str, list[FailedReply]]
    num_dropouts: int
    num_missed_deadline: int
    simulated_seconds: float
    uplink_bytes: int
    downlink_bytes: int

    @property
    def num_failures(self) -> int:
        """The number of failures of clients, counted in each attempt."""
        return sum(map(len, self.failures.values()))


@dataclass(frozen=True)
class AggregatedRound:
    """A round after ``aggregate`` and before ``server_training``.

    Args:
        server: the server with the seed of this round.
        state: the state after ``aggregate``.
        updates: the clients' updates in the order of clients.
        server_round: 1, 2, ...
        metrics: the metrics so far by name.
        counter: counts the steps of the server's own training.
    """

    server: Server
    state: State
    updates: Sequence[Update]
    server_round: int
    metrics: dict[str, float | Tensor]
    counter: StepCounter


@dataclass(frozen=True)
class PendingEvaluation:
    """A round whose training is finished and whose evaluation is still running.

    Args:
        result: the round without the results of its evaluation.
        messages: the evaluation messages to the clients.
        replies: waits for the clients' replies. None if the messages have not been sent yet.
        global_metrics: the server's metrics, or a function that waits for them. None if the server does not evaluate.
    """

    result: Round
    messages: list[Message]
    replies: PendingReplies | None
    global_metrics: MetricRecord | Callable[[], MetricRecord] | None


class ServerLoop(FlowerStrategy):
    """Flower's interface of a strategy, in terms of the hooks of :class:`fedkd.strategy.Strategy`."""

    broadcast_parts: ClassVar[tuple[str, ...]]
    clients_evaluate: ClassVar[bool] = True
    """Whether clients evaluate the model from which they would start to train. If not, ``client_ensemble`` is evaluated on their local test
    sets."""

    aggregator: Aggregator = Mean()
    """How the clients' models become one. The run sets it."""

    server_optimizer: ServerOptimizer = NoServerOptimizer()
    """The server's step along the change of the model in a round. The run sets it."""

    _federation: Federation | None = None
    _on_server_steps: Callable[[int, StepCount], None] = staticmethod(lambda server_round, count: None)

    # ------------------------------------------------------------------------------------------- hooks
    @abstractmethod
    def init_server(self, server: Server) -> State:
        """See :meth:`fedkd.strategy.Strategy.init_server`."""

    @abstractmethod
    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """See :meth:`fedkd.strategy.Strategy.aggregate`."""

    @abstractmethod
    def server_training(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """See :meth:`fedkd.strategy.Strategy.server_training`."""

    @abstractmethod
    def server_steps(self, server: Server, updates: Sequence[Update], server_round: int) -> int:
        """See :meth:`fedkd.strategy.Strategy.server_steps`."""

    @abstractmethod
    def aggregation_weights(self, updates: Sequence[Update]) -> list[float]:
        """See :meth:`fedkd.strategy.Strategy.aggregation_weights`."""

    # ------------------------------------------------------------------------------------------- Flower's interface
    @property
    def federation(self) -> Federation:
        """The settings of the run. They must be set before the strategy is started."""
        assert self._federation is not None, "set strategy.federation before the strategy is started"
        return self._federation

    @federation.setter
    def federation(self, federation: Federation) -> None:
        """Set the settings of the run."""
        self._federation = federation

    def summary(self) -> None:
        """Print nothing. Flower calls this at the start, but a run folder holds the configuration already."""

    def sample_clients(self, node_ids: Iterable[int], server_round: int) -> list[int]:
        """The cohort of a round: the sampled clients in ascending order."""
        federation = self.federation.at(server_round)
        return federation.devices.sample_clients(node_ids, federation.clients_per_round, server_round)

    def broadcast_content(self, arrays: ArrayRecord, server_round: int) -> RecordDict:
        """The content that all clients of a phase receive, as one object: the broadcast parts of the state, and the round."""
        parts = ArrayRecord({name: array for name, array in arrays.items() if name.partition(":")[0] in self.broadcast_parts})
        return RecordDict({serialization.BROADCAST: parts, "config": ConfigRecord({"server-round": server_round})})

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """One training message for each client of the cohort that does not drop out."""
        self._arrays, self._cohort = arrays, self.sample_clients(grid.get_node_ids(), server_round)
        content, devices = self.broadcast_content(arrays, server_round), self.federation.at(server_round).devices
        clients = [client for client in self._cohort if not devices.drops_out(client, server_round)]
        return [Message(content, message_type=MessageType.TRAIN, dst_node_id=client) for client in clients]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The state and the training metrics after a round. Replies with errors are ignored; ``start`` has handled them before."""
        replies = [reply for reply in replies if not reply.has_error()]
        return self.train_server(self.aggregate_replies(server_round, replies)) if replies else (None, None)

    def aggregate_replies(self, server_round: int, replies: Iterable[Message]) -> AggregatedRound:
        """The round after ``aggregate``. Without replies the state does not change."""
        server = self.federation.at(server_round).server
        server, device = replace(server, seed=server.seed / "round" / server_round / "server"), server.device
        updates = sorted((serialization.to_update(reply) for reply in replies), key=lambda update: update.client)
        updates = [
            replace(u, state={part: {key: value.to(device) for key, value in tensors.items()} for part, tensors in u.state.items()})
            for u in updates
        ]
        state = serialization.from_record(self._arrays, device)
        total = self.server_steps(server, updates, server_round) if updates else 0
        counter = StepCounter(partial(self._on_server_steps, server_round), total)
        if not updates:
            return AggregatedRound(server, state, updates, server_round, {}, counter)
        with counter:
            state, metrics = self.aggregate(server, state, updates, server_round)
        if "model" in state:  # also where a strategy averages in its own way
            state = {**state, "model": keep_frozen(server.model, server.initial, state["model"])}
        weights = self.aggregation_weights(updates)
        terms = {f"train_{name}": sum(w * u.metrics[name] for w, u in zip(weights, updates)) for name in updates[0].metrics}
        return AggregatedRound(server, state, updates, server_round, {**terms, **metrics}, counter)

    def train_server(self, aggregated: AggregatedRound) -> tuple[ArrayRecord, MetricRecord]:
        """The state and the metrics after ``server_training``. A round without updates has no server training."""
        state, metrics = aggregated.state, dict[str, Tensor]()
        if aggregated.updates:
            with aggregated.counter:
                state, metrics = self.server_training(aggregated.server, state, aggregated.updates, aggregated.server_round)
        numbers: MetricValues = {name: float(value) for name, value in {**aggregated.metrics, **metrics}.items()}
        return serialization.to_record(state), MetricRecord(numbers)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """One evaluation message for every client, as FedGen's public code measures the accuracy over all clients, or for a sample."""
        if not self.clients_evaluate:
            return []
        content, clients = self.broadcast_content(arrays, server_round), sorted(grid.get_node_ids())
        sample = self.federation.at(server_round).evaluated_clients
        if sample is not None:
            clients = sorted(set(clients).intersection(sample(server_round)))
        return [Message(content, message_type=MessageType.EVALUATE, dst_node_id=client) for client in clients]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The metrics over all clients' local test sets, see :func:`fedkd.metrics.accuracy.local_test_metrics`."""
        metrics = {reply.metadata.src_node_id: serialization.metrics_of(reply.content) for reply in replies if not reply.has_error()}
        counts = {client: (int(numbers["num-examples"]), int(numbers["num-correct"])) for client, numbers in metrics.items()}
        scores = local_test_metrics(list(counts.values()))
        if scores is None:
            return None
        more = other_predictions(list(metrics.values()))
        return MetricRecord({**scores, **more, **new_client_metrics(counts, self.federation.at(server_round).devices.new_clients)})

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
        on_server_steps: Callable[[int, StepCount], None] | None = None,
    ) -> Result:
        """Run the server rounds ``start_round``..``num_rounds``.

        Unlike Flower's own loop, this one can resume a run, applies the failure policy, and simulates dropout, stragglers and deadlines.

        The evaluation of a round runs in parallel with the server's training and with the local training of the next round. Grids that
        cannot process two requests at a time do one after the other.

        Args:
            grid: the grid that delivers messages to the clients.
            initial_arrays: the server's state before ``start_round``. None takes ``init_server``.
            num_rounds: the last round.
            timeout: seconds to wait for the clients in each phase.
            train_config: not used, as clients read the run's configuration.
            evaluate_config: not used either.
            evaluate_fn: ``(server round, arrays) -> metrics`` of the server's evaluation, or a function that waits for these metrics.
            start_round: the first round, 1 unless a run is resumed.
            simulated_seconds: simulated time in seconds before ``start_round``.
            on_round: called with each round after its evaluation.
            on_server_steps: called twice a second with the round and the steps of the server's own training, while it trains.

        Raises:
            ClientFailure: a client failed, and the policy does not allow the run to continue.
            DivergedError: a loss or the server's state is no longer finite. All rounds before have been passed to ``on_round``.
        """
        federation = self.federation
        if on_server_steps is not None:
            self._on_server_steps = on_server_steps
        arrays = serialization.to_record(self.init_server(federation.server)) if initial_arrays is None else initial_arrays
        infinite = frozenset(unsound_names(serialization.to_arrays(arrays)))
        result = Result()
        result.arrays = arrays
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        pending: PendingEvaluation | None = None

        def finish_round() -> None:
            if pending is not None:
                done, scores = self.finish_evaluation(grid, pending, timeout)
                result.arrays, result.train_metrics_clientapp[done.number] = done.arrays, MetricRecord(done.metrics)
                result.evaluate_metrics_serverapp[done.number] = scores
                if on_round:
                    on_round(replace(done, metrics={**done.metrics, **dict(scores)}))

        for number in range(start_round, num_rounds + 1):
            seconds = dict.fromkeys(("local_training", "server", "evaluation"), 0.0)
            with timed(seconds, "local_training"):
                messages = list(self.configure_train(number, arrays, train_config, grid))
                training = start_sending(grid, messages, timeout)
            finish_round()  # the previous round, while the clients of this round train
            with timed(seconds, "local_training"):
                replies, failures = collect_replies(grid, messages, timeout, number, federation.at(number), training)
            timing = round_timing(federation.at(number).devices, number, len(self._cohort), messages, replies)
            simulated_seconds += timing.seconds
            replies = [reply for reply in replies if reply.metadata.src_node_id not in timing.late]
            with timed(seconds, "server"), divergence_of_server(number):
                aggregated = self.aggregate_replies(number, replies)
                if hasattr(grid, "commit"):
                    grid.commit(reply.metadata.src_node_id for reply in replies)
            evaluate_messages: list[Message] = []
            evaluating: PendingReplies | None = None
            global_metrics: MetricRecord | Callable[[], MetricRecord] | None = None
            with timed(seconds, "evaluation"):
                if number % federation.evaluate_every == 0 or number == num_rounds:
                    state = serialization.to_record(aggregated.state)
                    evaluate_messages = list(self.configure_evaluate(number, state, evaluate_config, grid))
                    evaluating = start_sending(grid, evaluate_messages, timeout)
                    global_metrics = evaluate_fn(number, state) if evaluate_fn else None
            with timed(seconds, "server"), divergence_of_server(number):
                arrays, metrics = self.train_server(aggregated)
                check_finite(arrays, infinite)
            done = Round(
                number, arrays, dict(metrics), seconds, replies, [], {"training": failures}, len(self._cohort) - len(messages),
                len(timing.late), simulated_seconds, serialization.payload_bytes(replies), serialization.payload_bytes(messages),
            )  # fmt: skip
            pending = PendingEvaluation(done, evaluate_messages, evaluating, global_metrics)
        finish_round()
        return result

    def finish_evaluation(self, grid: Grid, pending: PendingEvaluation, timeout: float) -> tuple[Round, MetricRecord]:
        """Wait for the evaluation of a round.

        Returns:
            The round with the clients' evaluation replies, and the metrics of the evaluation.

        Raises:
            ClientFailure: a client failed, and the policy does not allow the run to continue.
        """
        done, scores, federation = pending.result, MetricRecord(), self.federation.at(pending.result.number)
        with timed(done.seconds, "evaluation"):
            replies, failures = collect_replies(grid, pending.messages, timeout, done.number, federation, pending.replies)
            scores.update((pending.global_metrics() if callable(pending.global_metrics) else pending.global_metrics) or {})
            scores.update(self.aggregate_evaluate(done.number, replies) or {})
        return replace(done, evaluate_replies=replies, failures={**done.failures, "evaluation": failures}), scores


def check_finite(arrays: ArrayRecord, infinite: Container[str]) -> None:
    """Reject a state of the server with NaN or infinity.

    Args:
        arrays: the state.
        infinite: names of tensors that were not finite before the first round, and need not be finite now.

    Raises:
        DivergedError: naming the tensor.
    """
    if bad := [name for name in unsound_names(serialization.to_arrays(arrays)) if name not in infinite]:
        raise DivergedError(f"{bad[0]!r} of the server's state must be finite, got NaN or infinity: lower the learning rate")


@contextmanager
def divergence_of_server(server_round: int) -> Iterator[None]:
    """Say in a ``DivergedError`` of the block that the server diverged, and in which round."""
    try:
        yield
    except FloatingPointError as error:
        loss = getattr(error, "loss", None)
        raise DivergedError(f"the server diverged in round {server_round}: {error}", round=server_round, loss=loss) from error


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall-clock time of the block, in seconds, to ``seconds[phase]``."""
    begin = time.perf_counter()
    yield
    seconds[phase] += time.perf_counter() - begin
