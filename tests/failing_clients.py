"""Strategies whose clients or server fail on request.

A file ``<folder>/<who>`` with the content ``<kind> <times>`` says how, and how many times, ``who`` will fail.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.metrics.accuracy import Score
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
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
class BadUpdates(FedAvg):
    """FedAvg in which client 3 sends a bad update in round 2.

    Args:
        kind: ``not_finite``: its model is not finite. ``loss``: its loss is not finite. ``diverges``: its training diverges. ``many``
            and ``negative``: it claims impossible numbers of examples. ``shape``: a tensor has another shape. ``evaluation``: it claims
            impossible scores.
    """

    kind: str

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        """The factor of each step's loss."""
        bad = (client.id, server_round, self.kind) == (3, 2, "diverges")
        return {"factor": torch.full((len(batches),), float("nan") if bad else 1.0, dtype=client.dtype)}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """FedAvg's loss times the factor."""
        loss, metrics = super().loss(model, batch, broadcast, client_state)
        return loss * batch.factor, metrics

    def train(self, client: Client, broadcast: State, client_state: State | None, server_round: int) -> tuple[Update, State]:
        """Spoil the update of client 3 in round 2."""
        update, kept = super().train(client, broadcast, client_state, server_round)
        return (self.spoil(update), kept) if (client.id, server_round) == (3, 2) and client.num_steps > 1 else (update, kept)

    def spoil(self, update: Update) -> Update:
        """A bad version of ``update``."""
        model = update.state["model"]
        first = next(iter(model))
        if self.kind == "not_finite":
            return replace(update, state={"model": {**model, first: model[first] * float("nan")}})
        if self.kind == "shape":
            return replace(update, state={"model": {**model, first: model[first][..., None]}})
        if self.kind == "loss":
            return replace(update, metrics={"loss": float("inf")})
        return replace(update, num_examples={"many": 10**15, "negative": -5}.get(self.kind, update.num_examples))

    def evaluate(
        self, client: Client, broadcast: State, client_state: State | None, server_round: int, batch_size: int
    ) -> dict[str, Score]:
        """Spoil the score of client 3."""
        scores = super().evaluate(client, broadcast, client_state, server_round, batch_size)
        if (client.id, self.kind) == (3, "evaluation"):
            return {name: replace(score, correct=score.total + 1) for name, score in scores.items()}
        return scores


@dataclass(kw_only=True)
class FailingEvaluation(FedGen):
    """FedGen whose clients fail in evaluations, and whose server fails while it trains the generator.

    Args:
        folder: the folder of the requests.
    """

    folder: str

    def evaluate(
        self, client: Client, broadcast: State, client_state: State | None, server_round: int, batch_size: int
    ) -> dict[str, Score]:
        """Fail if requested."""
        fail_if_planned(Path(self.folder) / f"evaluating-{client.id}")
        return super().evaluate(client, broadcast, client_state, server_round, batch_size)

    def server_training(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Fail if requested."""
        fail_if_planned(Path(self.folder) / "server")
        return super().server_training(server, state, updates, server_round)


def sleeping_process(folder: Path, timeout: float = 180) -> int:
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
