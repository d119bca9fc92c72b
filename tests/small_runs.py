"""Small federations for tests, trained in this process on scikit-learn's digits."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from flwr.app import Message
from omegaconf import OmegaConf

from fedkd.federation import serialization
from fedkd.types import State
from simulations.config import compose
from simulations.engine.flower_compat import set_task_identity
from simulations.engine.local_engine import LocalGrid
from simulations.setup.simulation import Simulation, build_simulation

ROOT = Path(__file__).parents[1]
"""The root of the checkout."""

STRATEGIES = sorted(path.stem for path in (ROOT / "conf" / "strategy").glob("*.yaml"))
"""The options of ``conf/strategy``."""


def strategy_file(name: str) -> dict[str, Any]:
    """The content of a yaml in ``conf/strategy``."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "strategy" / f"{name}.yaml").read_text(encoding="utf-8"))
    return values


def distinct(hooks: Iterable[str]) -> list[str]:
    """The options of ``conf/strategy`` without those that share these hooks and their shared layers with an earlier one, FedAvg first."""
    found: dict[tuple[object, ...], str] = {}
    for name in sorted(STRATEGIES, key=lambda name: (name != "fedavg", name)):
        values = strategy_file(name)
        for base in (entry for entry in values.get("defaults", ()) if entry in STRATEGIES):
            values = {**strategy_file(base), **values}
        module, _, kind = values["_target_"].rpartition(".")
        strategy = getattr(importlib.import_module(module), kind)
        found.setdefault((values.get("shared_layers"), *(getattr(strategy, hook) for hook in hooks)), name)
    return sorted(found.values())


LOCAL_HOOKS = ("client_network", "initial_weights", "local_phases", "prepare_batches", "loss")

LOCAL_TRAININGS = distinct(LOCAL_HOOKS)
"""Options with local trainings that no other has. Tests of how clients train need no more."""

TRAININGS = distinct((*LOCAL_HOOKS, "aggregate", "server_training"))
"""Options with trainings of clients or of the server that no other has."""

SMALL = (
    "engine=local", "partition=dirichlet", "partition.alpha=1.0", "num_clients=6", "clients_per_round=3", "rounds=3",
    "local_steps=4", "batch_size=16", "evaluation.every=1000", "clients_per_vmap=1",
)  # fmt: skip
"""Overrides of a small federation."""

# The gradient of a bias before BatchNorm is 0 up to rounding, and Adam divides by its size. A larger eps hides this noise.
SMALL_STRATEGIES = {
    "fedgen": ("strategy.generator_steps=4",),
    "feddf": ("public_data=held_out", "strategy.steps=4", "strategy.batch_size=16", "+strategy.optimizer.eps=1e-3"),
    "fedmd": ("public_data=held_out", "strategy.public_size=40", "strategy.batch_size=16"),
    "dense": ("strategy.epochs=2", "strategy.generator_steps=3", "strategy.batch_size=8", "+strategy.generator_optimizer.eps=1e-3"),
    "coboosting": ("strategy.epochs=2", "strategy.generator_steps=3", "strategy.batch_size=8", "+strategy.generator_optimizer.eps=1e-3"),
    "dfrd": ("strategy.iterations=2", "strategy.student_steps=2", "strategy.batch_size=8", "+strategy.generator_optimizer.eps=1e-3"),
    "fedtgp": ("strategy.server_epochs=2",),
    "fedkd": ("strategy.start_energy=0.5", "strategy.end_energy=0.8"),
    "fedrep": ("strategy.head_steps=2", "strategy.finetune_steps=2"),
    "fedbabu": ("strategy.finetune_steps=2",),
    "fedftg": ("strategy.iterations=2", "strategy.student_steps=2", "strategy.batch_size=8", "+strategy.generator_optimizer.eps=1e-3"),
}
SMALL_GENERATOR = ("strategy.generator.width=4", "strategy.generator.noise_size=6")


@dataclass(frozen=True)
class SmallRun:
    """A federation after its last round.

    Args:
        simulation: the simulation that was run.
        state: the final state of the server.
        client_states: the states of all clients that have trained, by client.
        metrics: the training metrics of each round.
    """

    simulation: Simulation
    state: State
    client_states: dict[int, State]
    metrics: dict[int, dict[str, Any]]


def strategy_overrides(name: str) -> list[str]:
    """Overrides that make the run of a strategy small, and that choose public data where the strategy needs them."""
    kind = next((kind for kind in SMALL_STRATEGIES if name.startswith(kind)), "")
    return [*SMALL_STRATEGIES.get(kind, ()), *(SMALL_GENERATOR if name.startswith(("dense", "dfrd", "fedftg", "coboosting")) else ())]


def small_simulation(*overrides: str) -> tuple[Simulation, str]:
    """A small simulation whose strategy is ready to train, and its configuration as YAML."""
    set_task_identity()
    text = OmegaConf.to_yaml(compose([*SMALL, *overrides]), resolve=True)
    simulation = build_simulation(text)
    simulation.strategy.federation = simulation.federation()
    return simulation, text


@lru_cache(maxsize=64)
def small_run(*overrides: str) -> SmallRun:
    """A small federation, run from its first to its last round. Equal overrides run once in each process."""
    simulation, text = small_simulation(*overrides)
    grid = LocalGrid(simulation.config.num_clients, text)
    result = simulation.strategy.start(grid, num_rounds=simulation.config.rounds)
    client_states = {client: serialization.from_record(record) for client, record in sorted(grid.client_states.items())}
    metrics = {number: dict(record) for number, record in result.train_metrics_clientapp.items()}
    return SmallRun(simulation, serialization.from_record(result.arrays), client_states, metrics)


class InterruptedGrid(LocalGrid):
    """A grid that raises KeyboardInterrupt before the training of one round, as if the process ended there.

    Args:
        arguments: the arguments of :class:`LocalGrid`.
        interrupted_round: the round whose training does not begin.
    """

    def __init__(self, *arguments: Any, interrupted_round: int = 3) -> None:
        super().__init__(*arguments)
        self.interrupted_round = interrupted_round

    def send(self, messages: Iterable[Message], *, timeout: float | None = None) -> Callable[[], list[Message]]:
        messages = list(messages)
        first = messages[0]
        if first.metadata.message_type == "train" and first.content["config"]["server-round"] == self.interrupted_round:
            raise KeyboardInterrupt
        return super().send(messages, timeout=timeout)


def same_tensors(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether two nested dictionaries have the same keys and, bit for bit, the same tensors."""
    if left.keys() != right.keys():
        return False
    return all(
        same_tensors(left[key], right[key]) if isinstance(left[key], Mapping) else torch.equal(left[key], right[key]) for key in left
    )
