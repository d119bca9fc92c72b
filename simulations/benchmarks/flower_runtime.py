"""Flower's simulation runtime, timed in a process of its own.

``python -m simulations.benchmarks.flower_runtime round 5 data=mnist data.root=FOLDER`` runs five whole FedGen rounds with fedkd's strategy
and ClientApp, one message per client. ``python -m simulations.benchmarks.flower_runtime thousand 5`` exchanges one kilobyte with a thousand
clients that do no work. Both use two actors with one CPU each and print the seconds of each round in a line. The first round includes the
start of the actors. The global test uses the initial BatchNorm statistics, because the server cannot read those of the clients.
"""

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from omegaconf import OmegaConf

from fedkd.federation import serialization
from simulations.benchmarks.flower_clients import CONFIG, echo_app, single_app
from simulations.config import compose
from simulations.engine.base import BlockingGrid
from simulations.engine.flower_compat import run_flower_simulation, silence_flower
from simulations.federation.runner import make_paths_absolute
from simulations.process import configure_process
from simulations.setup.evaluation import global_test_metrics, score_global_test
from simulations.setup.simulation import build_simulation

os.environ["FLWR_TELEMETRY_ENABLED"] = os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Flower reads these when it is imported

NUM_ACTORS, NUM_ECHO_CLIENTS, NUM_BYTES = 2, 1000, 1024

ROUNDS = 6
"""Rounds of one simulation of :func:`flower_seconds`. The first one, in which actors start, is discarded."""


class OneToOneGrid(BlockingGrid):
    """Clients 0..N-1 on as many nodes of Flower. Each message is sent to the node that hosts the client.

    Args:
        inner: Flower's grid.
        num_clients: number of clients N.
        patience: seconds to wait until N nodes are connected.

    Raises:
        TimeoutError: fewer nodes connected in time.
    """

    def __init__(self, inner: Grid, num_clients: int, patience: float = 300.0) -> None:
        super().__init__()
        self.inner, deadline = inner, time.monotonic() + patience
        while len(nodes := list(inner.get_node_ids())) < num_clients:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(nodes)} of {num_clients} nodes have connected within {patience} seconds")
            time.sleep(0.1)
        query = RecordDict()
        replies = inner.send_and_receive([Message(query, dst_node_id=node, message_type="query") for node in nodes])
        identities = ((reply.content.metric_records["identity"]["client"], reply.metadata.src_node_id) for reply in replies)
        self.nodes = {int(cast(int, client)): node for client, node in identities}
        assert sorted(self.nodes) == list(range(num_clients)), "every node hosts one client"

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies, sorted by client. Clients that did not reply in time are missing."""
        sent = [
            (Message(m.content, dst_node_id=self.nodes[m.metadata.dst_node_id], message_type=m.metadata.message_type), m) for m in messages
        ]
        received = self.inner.send_and_receive([message for message, _ in sent], timeout=timeout)
        asked = {message.metadata.message_id: m for message, m in sent}  # Flower numbers messages when it sends them
        replies = [
            Message(reply.error if reply.has_error() else reply.content, reply_to=asked[reply.metadata.reply_to_message_id])
            for reply in received
        ]
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def get_node_ids(self) -> list[int]:
        """The clients 0..N-1."""
        return sorted(self.nodes)

    def set_run(self, run: Any) -> None:
        """Nothing is set, because Flower's runtime has set the run of its own grid."""

    @property
    def run(self) -> Any:
        """The run of Flower's grid."""
        return self.inner.run


class LapTimer:
    """Prints the seconds since the last lap, or since it was created."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def lap(self, *_: object) -> None:
        """Print one line. Arguments are ignored."""
        now = time.perf_counter()
        print(f"{now - self.started:.6f}", flush=True)
        self.started = now


def run_fedgen_rounds(grid: Grid, config: str, rounds: int) -> None:
    """Whole rounds of FedGen: local training, generator, local test and global test."""
    simulation = build_simulation(config)
    strategy = simulation.strategy
    strategy.federation = simulation.federation()
    clients, timer = OneToOneGrid(grid, simulation.config.num_clients), LapTimer()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = strategy.global_model(strategy.federation.server, serialization.from_record(arrays))
        assert model is not None, "the strategy has a global model"
        return MetricRecord({**global_test_metrics(simulation, score_global_test(simulation, model))})

    strategy.start(clients, num_rounds=rounds, timeout=600.0, evaluate_fn=evaluate, on_round=timer.lap)


def run_echo_rounds(grid: Grid, rounds: int) -> None:
    """Send one kilobyte to every client and receive it back. All messages share one content object, as a broadcast does."""
    clients = OneToOneGrid(grid, NUM_ECHO_CLIENTS)
    content = RecordDict({"arrays": ArrayRecord([np.zeros(NUM_BYTES, dtype=np.uint8)])})
    timer = LapTimer()
    for _ in range(rounds):
        messages = [Message(content, dst_node_id=client, message_type="train") for client in range(NUM_ECHO_CLIENTS)]
        replies = clients.send_and_receive(messages, timeout=600.0)
        assert len(replies) == NUM_ECHO_CLIENTS and not any(reply.has_error() for reply in replies), "every client has replied"
        timer.lap()


def run_on_flower(num_nodes: int, client_app: ClientApp, work: Callable[[Grid], None]) -> None:
    """Run ``work`` as a ServerApp on Flower's runtime, then end the process. Flower does not end it after an error."""
    silence_flower()
    configure_process()  # as in the process of fedkd's driver
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        work(grid)

    code = 0
    try:
        run_flower_simulation(server_app, client_app, num_nodes, NUM_ACTORS)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def flower_seconds(workload: str, overrides: list[str]) -> Iterator[float]:
    """Seconds of warm rounds on Flower's runtime, from one simulation after the other.

    A simulation runs to its end before the seconds of its first round are returned. Other work of the caller therefore never runs at the
    same time.

    Args:
        workload: ``round`` or ``thousand``, as on the command line.
        overrides: words ``KEY=VALUE`` of ``fedkd run``.

    Raises:
        RuntimeError: a simulation failed. Its standard error says why.
    """
    command = [sys.executable, "-m", "simulations.benchmarks.flower_runtime", workload, str(ROUNDS), *overrides]
    while True:
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        seconds = [float(line) for line in finished.stdout.split() if line.replace(".", "", 1).isdigit()]
        if finished.returncode or len(seconds) < ROUNDS:
            raise RuntimeError(f"Flower's simulation ended with exit code {finished.returncode} after {len(seconds)} rounds")
        yield from seconds[1:]


def main(workload: str, rounds: str, *overrides: str) -> None:
    """Run one of the two workloads."""
    if workload == "thousand":
        run_on_flower(NUM_ECHO_CLIENTS, echo_app, lambda grid: run_echo_rounds(grid, int(rounds)))
    composed = compose(["strategy=fedgen", "engine=local", *overrides])
    make_paths_absolute(composed)
    os.environ[CONFIG] = config = OmegaConf.to_yaml(composed, resolve=True)
    run_on_flower(composed.num_clients, single_app, lambda grid: run_fedgen_rounds(grid, config, int(rounds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
