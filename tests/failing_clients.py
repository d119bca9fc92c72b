"""Strategies that fail as they are told to: a file ``<folder>/<who>`` with ``<kind> <times>`` says how, and how often still."""

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


def plan(folder: Path, who: int | str, kind: str, times: int) -> None:
    """From now on ``who`` fails, ``times`` times: a client in round 2, ``evaluating-<client>`` in an evaluation, or the ``server``."""
    (folder / str(who)).write_text(f"{kind} {times}")


def obey(path: Path) -> None:
    """Fail if that is planned, and note that it was done."""
    kind, times = path.read_text().split() if path.exists() else ("", 0)
    if int(times) > 0:
        path.write_text(f"{kind} {int(times) - 1}")
        fail(kind, path)


@dataclass(kw_only=True)
class Mischief(FedAvg):
    """FedAvg, but for what ``folder`` says."""

    folder: str

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        if server_round == 2:
            obey(Path(self.folder) / str(client.id))
        return super().prepare_batches(client, batches, broadcast, client_state, server_round)


@dataclass(kw_only=True)
class Overlapping(FedGen):
    """FedGen, but for what ``folder`` says: of clients that evaluate, and of the server that trains its generator meanwhile."""

    folder: str

    def evaluate(self, client: Client, broadcast: State, client_state: State | None, batch_size: int) -> Score:
        obey(Path(self.folder) / f"evaluating-{client.id}")
        return super().evaluate(client, broadcast, client_state, batch_size)

    def server_training(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        obey(Path(self.folder) / "server")
        return super().server_training(server, state, updates, server_round)


def asleep(folder: Path, timeout: float = 60) -> int:
    """The process of whoever sleeps, as soon as somebody does."""
    end = time.monotonic() + timeout
    while not (found := [path for path in folder.glob("*.pid") if path.read_text()]):
        assert time.monotonic() < end, f"nobody slept in {timeout} seconds"
        time.sleep(0.02)
    process = int(found[0].read_text())
    found[0].unlink()
    return process


def fail(kind: str, path: Path) -> None:
    """Do it."""
    if kind == "kill":  # somebody else
        os.kill(asleep(path.parent), signal.SIGKILL)
    if kind == "wait":
        asleep(path.parent)
        raise KeyError("the cat ate my homework")
    if kind == "raise":
        raise KeyError("the dog ate my homework")
    if kind == "exit":
        os._exit(3)
    if kind == "sleep":
        path.with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(600)
