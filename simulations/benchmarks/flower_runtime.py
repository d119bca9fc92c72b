"""Flower's own simulation runtime, timed in a process of its own.

``python -m simulations.benchmarks.flower_runtime round 5 data=mnist data.root=<folder>`` runs whole FedGen rounds with the same strategy and
ClientApp, one message per client. ``python -m simulations.benchmarks.flower_runtime thousand 5`` runs a thousand clients that echo a kilobyte.
Both use two actors with one CPU each, and print one line of seconds per round. The first round loads the actors: leave it out.
The global test uses the initial BatchNorm statistics, since the server cannot read those of the clients.
"""

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from omegaconf import OmegaConf

from fedkd.federation import serialization
from simulations.benchmarks.flower_clients import CONFIG, echo_app, single_app
from simulations.config import compose
from simulations.engine.base import BlockingGrid
from simulations.engine.flower_compat import silence_flower, simulate
from simulations.federation.runner import make_paths_absolute
from simulations.setup.evaluation import global_test_metrics, test_score
from simulations.setup.simulation import build_simulation

os.environ["FLWR_TELEMETRY_ENABLED"] = os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Flower looks when it is imported


ACTORS, THOUSAND, KILOBYTE = 2, 1000, 1024


class OneToOne(BlockingGrid):
    """Clients 0..N-1 on as many of Flower's nodes: each message goes on as it is, to the node that is its client.

    Args:
        inner: Flower's grid.
        num_clients: N; as many nodes are waited for.
        patience: seconds to wait for them.

    Raises:
        TimeoutError: they did not connect.
    """

    def __init__(self, inner: Grid, num_clients: int, patience: float = 300.0) -> None:
        super().__init__()
        self.inner, deadline = inner, time.monotonic() + patience
        while len(nodes := list(inner.get_node_ids())) < num_clients:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(nodes)} of {num_clients} nodes have connected within {patience} seconds")
            time.sleep(0.1)
        question = RecordDict()
        replies = inner.send_and_receive([Message(question, dst_node_id=node, message_type="query") for node in nodes])
        self.nodes = {int(reply.content["who"]["client"]): reply.metadata.src_node_id for reply in replies}
        assert sorted(self.nodes) == list(range(num_clients)), "every node said which client it is"

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """One reply or error for each message that was answered, sorted by client."""
        asked = {self.nodes[m.metadata.dst_node_id]: m for m in messages}
        sent = [Message(m.content, dst_node_id=node, message_type=m.metadata.message_type) for node, m in asked.items()]
        replies = [
            Message(reply.error if reply.has_error() else reply.content, reply_to=asked[reply.metadata.src_node_id])
            for reply in self.inner.send_and_receive(sent, timeout=timeout)
        ]
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def get_node_ids(self) -> list[int]:
        """0..N-1."""
        return sorted(self.nodes)

    def set_run(self, run: Any) -> None:
        """Flower's runtime has told its own grid."""

    @property
    def run(self) -> Any:
        """Flower's."""
        return self.inner.run


class Stopwatch:
    """Prints the seconds since it was made, or since it last printed."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()

    def lap(self, *_: object) -> None:
        """One line."""
        now = time.perf_counter()
        print(f"{now - self.begin:.6f}", flush=True)
        self.begin = now


def whole_rounds(grid: Grid, text: str, rounds: int) -> None:
    """FedGen's rounds: local training, the generator, the clients' own test shards, the balanced test."""
    home = build_simulation(text)
    strategy = home.strategy
    strategy.federation = home.federation()
    clients, watch = OneToOne(grid, home.config.num_clients), Stopwatch()

    def judge(server_round: int, arrays: ArrayRecord) -> dict[str, float]:
        return global_test_metrics(
            home, test_score(home, strategy.global_model(strategy.federation.server, serialization.from_record(arrays)))
        )

    strategy.start(clients, num_rounds=rounds, timeout=600.0, evaluate_fn=judge, on_round=watch.lap)


def echoes(grid: Grid, rounds: int) -> None:
    """A message of a kilobyte to every client, and the same back; the same content for all, as a broadcast is."""
    clients = OneToOne(grid, THOUSAND)
    content = RecordDict({"arrays": ArrayRecord([np.zeros(KILOBYTE, dtype=np.uint8)])})
    watch = Stopwatch()
    for _ in range(rounds):
        messages = [Message(content, dst_node_id=client, message_type="train") for client in range(THOUSAND)]
        replies = clients.send_and_receive(messages, timeout=600.0)
        assert len(replies) == THOUSAND and not any(reply.has_error() for reply in replies), "every client has answered"
        watch.lap()


def run(num_nodes: int, client_app: ClientApp, work: Callable[[Grid], None]) -> None:
    """Do ``work`` on Flower's runtime and end the process, which Flower leaves hanging where something failed."""
    silence_flower()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        work(grid)

    code = 0
    try:
        simulate(server_app, client_app, num_nodes, ACTORS)
    except BaseException:  # noqa: BLE001 - whatever it was, the process must end, and say so
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(workload: str, rounds: str, *overrides: str) -> None:
    """One of the two workloads."""
    if workload == "thousand":
        run(THOUSAND, echo_app, lambda grid: echoes(grid, int(rounds)))
    config = compose(["strategy=fedgen", "engine=local", *overrides])
    make_paths_absolute(config)
    os.environ[CONFIG] = text = OmegaConf.to_yaml(config, resolve=True)
    run(config.num_clients, single_app, lambda grid: whole_rounds(grid, text, int(rounds)))


if __name__ == "__main__":
    main(*sys.argv[1:])


ROUNDS = 6
"""Rounds of one simulation, of which the first, in which actors load what they need, is left out."""


def flower_seconds(workload: str, overrides: list[str]) -> Iterator[float]:
    """Seconds of warm rounds of ``workload`` (see :mod:`simulations.benchmarks.flower_runtime`), from one simulation after the other.

    A simulation pauses only between its rounds' lines, so what the caller does in between runs beside it: the caller must take all
    rounds of a simulation in a row. That is done here: a simulation is run to its end before its first round is handed out.

    Raises:
        RuntimeError: the simulation failed; it says why on standard error.
    """
    command = [sys.executable, "-m", "simulations.benchmarks.flower_runtime", workload, str(ROUNDS), *overrides]
    while True:
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        seconds = [float(line) for line in ended.stdout.split() if line.replace(".", "", 1).isdigit()]
        if ended.returncode or len(seconds) < ROUNDS:
            raise RuntimeError(f"Flower's simulation ended with exit code {ended.returncode} after {len(seconds)} rounds")
        yield from seconds[1:]
