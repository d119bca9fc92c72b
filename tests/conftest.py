"""What the tests of the algorithms have in common: a small federation, run in this process on scikit-learn's digits."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fedkd.federation import serialization
from fedkd.types import State
from simulations.config import compose
from simulations.engine.flower_compat import identify
from simulations.engine.local_engine import LocalGrid
from simulations.setup.simulation import Simulation, build_simulation

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
STRATEGIES = sorted(path.stem for path in (ROOT / "conf" / "strategy").glob("*.yaml"))
SMALL = (
    "engine=local", "partition=dirichlet", "partition.alpha=1.0", "num_clients=6", "clients_per_round=3", "rounds=3",
    "local_steps=4", "batch_size=16", "evaluation.every=1000", "clients_per_vmap=1",
)  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """A federation after its last round."""

    home: Simulation
    state: State
    memories: dict[int, State]
    metrics: dict[int, dict[str, float]]


# An eps of Adam above the noise: the gradient of a bias before BatchNorm is zero but for rounding, and Adam divides by it.
TINY = {
    "fedgen": ("strategy.generator_steps=4",),
    "feddf": ("public_data=held_out", "strategy.steps=4", "strategy.batch_size=16", "+strategy.optimizer.eps=1e-3"),
    "fedmd": ("public_data=held_out", "strategy.public_size=40", "strategy.batch_size=16"),
    "dense": ("strategy.epochs=2", "strategy.generator_steps=3", "strategy.batch_size=8", "+strategy.generator_optimizer.eps=1e-3"),
    "fedftg": ("strategy.iterations=2", "strategy.student_steps=2", "strategy.batch_size=8", "+strategy.generator_optimizer.eps=1e-3"),
}
IMAGES = ("strategy.generator.width=4", "strategy.generator.noise_size=6")


def options(name: str) -> list[str]:
    """What makes a tiny run of a strategy tiny, and gives it the public set that it needs."""
    kind = next((kind for kind in TINY if name.startswith(kind)), None)
    return [*TINY.get(kind, ()), *(IMAGES if name in ("dense", "fedftg") else ())]


def settle(*overrides: str) -> tuple[Simulation, str]:
    """The world of a small configuration, ready to train, and its configuration as YAML."""
    identify()
    text = OmegaConf.to_yaml(compose([*SMALL, *overrides]), resolve=True)
    home = build_simulation(text)
    home.strategy.federation = home.federation()
    return home, text


@lru_cache(maxsize=64)
def run(*overrides: str) -> Ran:
    """A small federation from its first round to its last; the same overrides run once."""
    home, text = settle(*overrides)
    grid = LocalGrid(home.config.num_clients, text)
    result = home.strategy.start(grid, num_rounds=home.config.rounds)
    memories = {client: serialization.from_record(record) for client, record in sorted(grid.memory.items())}
    metrics = {number: dict(record) for number, record in result.train_metrics_clientapp.items()}
    return Ran(home, serialization.from_record(result.arrays), memories, metrics)


def same(left: dict, right: dict) -> bool:
    """Equal keys and, bit for bit, equal tensors, however deep."""
    if left.keys() != right.keys():
        return False
    return all(same(left[key], right[key]) if isinstance(left[key], dict) else torch.equal(left[key], right[key]) for key in left)


@pytest.fixture(params=["public_data", "paper"])
def switches(request: pytest.FixtureRequest) -> str:
    """The override that sets the switches of every strategy."""
    return f"protocol@strategy={request.param}"
