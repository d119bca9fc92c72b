"""A strategy that fails as it is told to: a file ``<folder>/<client>`` with ``<kind> <times>`` says how, and how often still."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedkd.batch import Batches
from fedkd.site import Client
from fedkd.types import State
from strategies.fedavg import FedAvg


def plan(folder: Path, client: int, kind: str, times: int) -> None:
    """From now on ``client`` fails in round 2, ``times`` times."""
    (folder / str(client)).write_text(f"{kind} {times}")


@dataclass(kw_only=True)
class Mischief(FedAvg):
    """FedAvg, but for what ``folder`` says."""

    folder: str

    def draw(self, client: Client, batches: Batches, shared: State, own: State, server_round: int) -> dict[str, Tensor]:
        path = Path(self.folder) / str(client.id)
        kind, times = path.read_text().split() if server_round == 2 and path.exists() else ("", 0)
        if int(times) > 0:
            path.write_text(f"{kind} {int(times) - 1}")
            fail(kind, path)
        return super().draw(client, batches, shared, own, server_round)


def fail(kind: str, path: Path) -> None:
    """Do it."""
    if kind == "raise":
        raise KeyError("the dog ate my homework")
    if kind == "exit":
        os._exit(3)
    if kind == "sleep":
        path.with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(600)
