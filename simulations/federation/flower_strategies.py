"""Runs of Flower's own strategies, unmodified, with fedkd's clients, failure policy and run folder."""

import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedkd.errors import ConfigError, StopRun
from fedkd.federation import serialization
from fedkd.federation.aggregation import assemble_model
from fedkd.federation.messaging import FailedReply, Federation, collect_replies, round_timing
from simulations.engine.base import ClientGrid
from simulations.engine.worker_environment import recorded
from simulations.federation.round_records import check_finite_loss, failure_notes, shift_rows, write_data_files
from simulations.progress import MakeProgress
from simulations.run_folder.folder import RunFolder
from simulations.run_folder.observers import Observers
from simulations.setup.evaluation import ensemble_local_metrics, global_test_metrics, score_global_test
from simulations.setup.simulation import Simulation


class PolicyGrid(Grid):
    """A grid with the failure policy of a run. Flower's strategies would continue with all clients that reply, however few.

    The grid also counts the traffic and the failures of a round.

    Args:
        inner: the grid that delivers the messages.
        federation: the settings with the failure policy.
    """

    def __init__(self, inner: ClientGrid, federation: Federation) -> None:
        self._inner, self._federation, self.simulated_seconds = inner, federation, 0.0
        self.reset()

    def reset(self) -> None:
        """Start to count the traffic and the failures of a new round."""
        self.begin, self.num_clients_aggregated = time.perf_counter(), 0
        self.failures: list[FailedReply] = []
        self.uplink_bytes, self.downlink_bytes = 0, 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages, and return the replies without errors. Only the bytes of training count.

        Raises:
            ClientFailure: a client failed, and the policy does not allow the run to continue.
        """
        messages = list(messages)
        if not messages:
            return []
        server_round = serialization.server_round_of(messages[0].content)
        replies, failures = collect_replies(self._inner, messages, timeout, server_round, self._federation)
        self.failures += failures
        if messages[0].metadata.message_type == "train":
            self.uplink_bytes, self.downlink_bytes = serialization.payload_bytes(replies), serialization.payload_bytes(messages)
            self.num_clients_aggregated = len(replies)
            self.simulated_seconds += round_timing(self._federation.devices, server_round, len(messages), messages, replies).seconds
        return replies

    def get_node_ids(self) -> list[int]:
        """The clients that have training examples. The others are never asked to train."""
        sizes = self._federation.devices.num_examples
        return [client for client in self._inner.get_node_ids() if sizes[client] > 0]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """See the inner grid."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """See the inner grid."""
        return self._inner.pull_messages(message_ids)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See the inner grid."""
        return self._inner.create_message(*args, **kwargs)

    def set_run(self, run: Any) -> None:
        """See the inner grid."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """See the inner grid."""
        return self._inner.run


def start_flower_strategy(
    simulation: Simulation, folder: RunFolder, grid: ClientGrid, make_progress: MakeProgress, watching: Observers
) -> None:
    """Run all rounds of one of Flower's strategies. Its state cannot be saved, so the run cannot be resumed.

    Args:
        simulation: the simulation of the run.
        folder: the locked run folder.
        grid: the grid of clients.
        make_progress: ``(config, first round) -> progress``, see :func:`simulations.federation.runner.run_federation`.
        watching: the observers of the run.

    Raises:
        ConfigError: the folder holds rows of an earlier run that was interrupted, or an observer stops the run.
        ClientFailure: a client failed, and the policy does not allow the run to continue.
        DivergedError: a loss or the model is no longer finite.
    """
    config, strategy = simulation.config, simulation.flower_strategy
    if (folder.path / "metrics.csv").exists():
        name = f"{type(strategy).__module__}.{type(strategy).__name__}"
        raise ConfigError(
            f"strategy._target_ must be a strategy of fedkd for a run that is resumed, got {name}, whose state is not saved; "
            f"force=true starts the run in {folder.path} again"
        )
    folder.begin(partial(write_data_files, simulation), shift_rows(simulation), simulation.digests)
    watching.begin(folder.path, 1)
    counting = PolicyGrid(grid, simulation.federation())
    with make_progress(config, 1) as progress, (simulation.seed / "foreign").globally():

        def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if server_round > 0:
                row = {
                    "round": server_round,
                    "local_training_seconds": round(time.perf_counter() - counting.begin, 4),
                    **evaluate_round(simulation, server_round, arrays),
                    "uplink_bytes": counting.uplink_bytes,
                    "downlink_bytes": counting.downlink_bytes,
                    "num_failures": len(counting.failures),
                    "num_clients_aggregated": counting.num_clients_aggregated,
                    "num_dropouts": 0,
                    "num_missed_deadline": 0,
                    "simulated_seconds": counting.simulated_seconds,
                    **grid.metrics(),
                }
                check_finite_loss(row)
                folder.workers(recorded(grid.environments()))
                notes = failure_notes({"training": counting.failures})
                folder.client_rows([{"round": server_round, "client_id": k, "trained": 0, "failure": notes[k]} for k in sorted(notes)])
                folder.row(row)
                progress.advance(row)
                call_observers(server_round, arrays, row)
            counting.reset()
            return None

        def call_observers(server_round: int, arrays: ArrayRecord, row: dict[str, float]) -> None:
            def save(name: str) -> None:
                state = {"model": simulation.to_model_tensors(arrays)}
                folder.checkpoint(server_round, state, {}, counting.simulated_seconds, name)

            try:
                with (simulation.seed / "observers").globally():  # random numbers of observers do not change those of the strategy
                    watching.round(server_round, row, [], save)
            except StopRun as reason:
                if server_round < config.rounds:
                    rule = (
                        "must not stop a run of Flower's own strategies, whose state is not saved, so that the run could not be continued"
                    )
                    raise ConfigError(f"callbacks {rule}; got {reason}") from reason

        initial = ArrayRecord(simulation.initial)
        result = strategy.start(counting, initial, num_rounds=config.rounds, timeout=config.timeout, evaluate_fn=evaluate_fn)
    folder.checkpoint(config.rounds, {"model": simulation.to_model_tensors(result.arrays)}, {}, counting.simulated_seconds)


def evaluate_round(simulation: Simulation, server_round: int, arrays: ArrayRecord) -> dict[str, float]:
    """The metrics and the evaluation time of a round. There are no metrics if the round is not to be evaluated.

    Flower's strategies do not tell local training from the server's work, so ``server_seconds`` is 0.
    """
    begin = time.perf_counter()
    metrics: dict[str, float] = {}
    if server_round % simulation.config.evaluation.every == 0 or server_round == simulation.config.rounds:
        model = assemble_model(simulation.model, simulation.initial, simulation.to_model_tensors(arrays))
        if simulation.can_test_globally:
            metrics = global_test_metrics(simulation, score_global_test(simulation, model))
        if simulation.holds_client_data:
            found = ensemble_local_metrics(simulation, model, server_round)
            metrics |= {name: value for name, value in found.items() if not isinstance(value, list)}
    return {**metrics, "server_seconds": 0, "evaluation_seconds": round(time.perf_counter() - begin, 4)}
