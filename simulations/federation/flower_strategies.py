"""Strategies that are Flower's own, unmodified: run with fedkd's clients, failure policy and run folder."""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import Grid
from omegaconf import DictConfig

from fedkd.errors import ConfigError
from fedkd.federation import serialization
from fedkd.federation.aggregation import assemble_model
from fedkd.federation.messaging import Federation, collect_replies, round_timing
from simulations.engine.base import ClientGrid
from simulations.federation.round_records import save_partition, shift_rows
from simulations.progress import round_progress
from simulations.run_folder.folder import RunFolder
from simulations.setup.evaluation import ensemble_local_metrics, global_test_metrics, test_score
from simulations.setup.simulation import Simulation


class PolicyGrid(Grid):
    """Another grid under the run's failure policy: Flower's strategies go on with whoever answers, however few.

    Args:
        inner: where messages go.
        policy: says what a failure means.
    """

    def __init__(self, inner: ClientGrid, policy: Federation) -> None:
        self._inner, self._policy, self.simulated_seconds = inner, policy, 0.0
        self.reset()

    def reset(self) -> None:
        """Begin to count a round's traffic and failures."""
        self.began, self.num_failures, self.num_clients_aggregated, self.uplink_bytes, self.downlink_bytes = time.perf_counter(), 0, 0, 0, 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The good replies; bytes are counted of training, as for every strategy."""
        messages = list(messages)
        if not messages:
            return []
        number = int(messages[0].content["config"]["server-round"])
        replies, failures = collect_replies(self._inner, messages, timeout, number, self._policy)
        self.num_failures += failures
        if messages[0].metadata.message_type == "train":
            self.uplink_bytes, self.downlink_bytes, self.num_clients_aggregated = (
                serialization.payload_bytes(replies),
                serialization.payload_bytes(messages),
                len(replies),
            )
            self.simulated_seconds += round_timing(self._policy.devices, number, len(messages), messages, replies).seconds
        return replies

    def get_node_ids(self) -> list[int]:
        """The clients."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """As the inner grid does."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """As the inner grid does."""
        return self._inner.pull_messages(message_ids)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """As the inner grid does."""
        return self._inner.create_message(*args, **kwargs)

    def set_run(self, run: Any) -> None:
        """As the inner grid does."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """As the inner grid does."""
        return self._inner.run


def start_flower_strategy(
    home: Simulation, folder: RunFolder, grid: ClientGrid, shown: Callable[[DictConfig, int], AbstractContextManager] = round_progress
) -> None:
    """Run a strategy of Flower's own, whose state nobody can save: it is run whole or not at all.

    Raises:
        ConfigError: an earlier run of it was interrupted; it cannot be resumed.
    """
    config, kind = home.config, type(home.strategy)
    if (folder.path / "metrics.csv").exists():
        raise ConfigError(
            f"strategy._target_ must be a strategy of fedkd for a run to be resumed, got {kind.__module__}.{kind.__name__}, whose state is "
            f"its own and is not saved; remove {folder.path} to run it again from the beginning"
        )
    folder.begin(partial(save_partition, home), shift_rows(home))
    watched = PolicyGrid(grid, home.federation())
    with shown(config, 1) as progress, (home.seed / "foreign").globally():

        def evaluate_fn(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            if number > 0:
                row = {
                    "round": number,
                    "local_training_seconds": round(time.perf_counter() - watched.began, 4),
                    **measure(home, number, arrays),
                }
                row |= {
                    "uplink_bytes": watched.uplink_bytes,
                    "downlink_bytes": watched.downlink_bytes,
                    "num_failures": watched.num_failures,
                }
                row |= {
                    "num_clients_aggregated": watched.num_clients_aggregated,
                    "num_dropouts": 0,
                    "num_missed_deadline": 0,
                    "simulated_seconds": watched.simulated_seconds,
                }
                folder.row(row)
                progress.advance(row)
            watched.reset()
            return None

        initial = ArrayRecord(home.initial)
        result = home.strategy.start(watched, initial, num_rounds=config.rounds, timeout=config.timeout, evaluate_fn=evaluate_fn)
    folder.checkpoint(config.rounds, {"model": home.receive(result.arrays)}, {}, watched.simulated_seconds)


def measure(home: Simulation, number: int, arrays: ArrayRecord) -> dict[str, float]:
    """The scores after a round, where it is one to evaluate; local and server time cannot be told apart."""
    began = time.perf_counter()
    scores: dict[str, float] = {}
    if number % home.config.evaluation.every == 0 or number == home.config.rounds:
        model = assemble_model(home.model, home.initial, home.receive(arrays))
        scores = {
            **global_test_metrics(home, test_score(home, model)),
            **{k: v for k, v in ensemble_local_metrics(home, model).items() if not isinstance(v, list)},
        }
    return {**scores, "server_seconds": 0, "evaluation_seconds": round(time.perf_counter() - began, 4)}
