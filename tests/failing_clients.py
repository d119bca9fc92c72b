"""Strategies whose clients or server fail on request.

A file ``<folder>/<who>`` with the content ``<kind> <times>`` says how, and how many times, ``who`` will fail.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.metrics.accuracy import Score
from fedkd.training.batch import Batches
from fedkd.types import Metrics, State, Update
from strategies.fedavg import FedAvg
from strategies.fedgen import FedGen


def plan_failure(folder: Path, who: int | str, kind: str, times: int) -> None:
    """Request failures.

    Args:
        folder: the folder of the requests.
        who: a client, which fails in the training of round 2, ``evaluating-<client>``, or ``server``.
        kind: ``raise`` an exception, ``exit`` the process, ``sleep`` for ten minutes, ``kill`` a sleeping process, or ``wait`` for a
            sleeping process and then raise an exception.
        times: number of failures.
    """
    (folder / str(who)).write_text(f"{kind} {times}")


def fail_if_planned(path: Path) -> None:
    """Fail if the file ``path`` requests it, and decrease its number of failures."""
    kind, times = path.read_text().split() if path.exists() else ("", 0)
    if int(times) > 0:
        path.write_text(f"{kind} {int(times) - 1}")
        fail(kind, path)


@dataclass(kw_only=True)
class FailingClients(FedAvg):
    """FedAvg whose clients fail in the training of round 2.

    Args:
        folder: the folder of the requests.
    """

    folder: str

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        """Fail if requested."""
        if server_round == 2:
            fail_if_planned(Path(self.folder) / str(client.id))
        return super().prepare_batches(client, batches, broadcast, client_state, server_round)


@dataclass(kw_only=True)
class FailingEvaluation(FedGen):
    """FedGen whose clients fail in evaluations, and whose server fails while it trains the generator.

    Args:
        folder: the folder of the requests.
    """

    folder: str

    def evaluate(self, client: Client, broadcast: State, client_state: State | None, batch_size: int) -> Score:
        """Fail if requested."""
        fail_if_planned(Path(self.folder) / f"evaluating-{client.id}")
        return super().evaluate(client, broadcast, client_state, batch_size)

    def server_training(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Fail if requested."""
        fail_if_planned(Path(self.folder) / "server")
        return super().server_training(server, state, updates, server_round)


def sleeping_process(folder: Path, timeout: float = 60) -> int:
    """Wait for a process that sleeps on request, and return its number."""
    end = time.monotonic() + timeout
    while not (paths := [path for path in folder.glob("*.pid") if path.read_text()]):
        assert time.monotonic() < end, f"no process slept within {timeout} seconds"
        time.sleep(0.02)
    process = int(paths[0].read_text())
    paths[0].unlink()
    return process


def fail(kind: str, path: Path) -> None:
    """Fail in one of the ways of :func:`plan_failure`."""
    if kind == "kill":
        os.kill(sleeping_process(path.parent), signal.SIGKILL)
    if kind == "wait":
        sleeping_process(path.parent)
        raise KeyError("planned failure of the server")
    if kind == "raise":
        raise KeyError("planned failure of a client")
    if kind == "exit":
        os._exit(3)
    if kind == "sleep":
        path.with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(600)
