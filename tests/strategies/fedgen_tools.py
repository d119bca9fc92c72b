"""Tools for tests of FedGen: a small strategy, client, server and network."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from hydra.utils import instantiate

from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.models.mlp import MLP
from fedkd.seed import Seed
from fedkd.training.functional_model import snapshot
from fedkd.types import Examples, State, Task, Update
from simulations.config import compose
from strategies.fedgen import FedGen
from tests.small_runs import SMALL

TASK = Task("toy", (1, 2, 2), 3)


RNG = np.random.default_rng(7)


DOUBLE = torch.float64


@lru_cache
def shipped_fedgen() -> FedGen:
    """The shipped strategy with a generator of four hidden units and noise of size 2."""
    config = compose([*SMALL, "strategy=fedgen", "strategy.generator.hidden=4", "strategy.generator.noise_size=2"])
    return instantiate(config.strategy, _convert_="all")


def fedgen(**changes) -> FedGen:
    """A new strategy with other parameters."""
    return replace(shipped_fedgen(), **changes)


def small_mlp(seed: int = 0, task: Task = TASK) -> MLP:
    torch.manual_seed(seed)
    return MLP(task, widths=[3]).to(DOUBLE)


def make_client(model: MLP, num_steps: int = 25, batch_size: int = 8) -> Client:
    x = torch.from_numpy(RNG.integers(0, 256, (40, *TASK.shape), dtype=np.uint8))
    y = torch.from_numpy(RNG.integers(0, TASK.num_classes, 40))
    return Client(
        id=0, task=TASK, seed=Seed(0) / "round" / 2 / "client" / 0, model=model, initial=snapshot(model), architecture="mlp",
        data=Examples(x, y, 255.0, (0.0,), (1.0,)), num_steps=num_steps, batch_size=batch_size, optimizer=torch.optim.SGD,
        lr=0.1, momentum=0.0, dtype=DOUBLE,
    )  # fmt: skip


def make_server(model: MLP, task: Task = TASK) -> Server:
    return Server(task, Seed(0) / "round" / 1 / "server", model, snapshot(model), 4, 10, DOUBLE)


def finish_round(strategy: FedGen, participant: Server, state: State, updates: list[Update], server_round: int) -> State:
    """The state after a round: aggregation, then server training."""
    state, _ = strategy.aggregate(participant, state, updates, server_round)
    return strategy.server_training(participant, state, updates, server_round)[0]
