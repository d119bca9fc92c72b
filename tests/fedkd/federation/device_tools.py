"""Tools for tests of client sampling and system heterogeneity: devices, and small federations."""

from collections import Counter
from dataclasses import replace
from functools import partial
from math import sqrt

from fedkd.federation.server_loop import Round
from fedkd.federation.system_heterogeneity import HOMOGENEOUS, Devices
from fedkd.seed import Seed
from simulations.engine.local_engine import LocalGrid
from simulations.federation.runner import start_global_evaluation
from tests.small_runs import small_simulation

ROUNDS = range(1, 4001)


def devices(num_clients: int = 6, seed: int = 0, shape: tuple[int, int] = (10, 20), sizes: tuple[int, ...] = (), **knobs) -> Devices:
    """Devices of equal clients, with other rules if given."""
    return Devices(replace(HOMOGENEOUS, **knobs), Seed(seed), [shape] * num_clients, sizes or [100] * num_clients)


def has_frequencies(counts: Counter, chances: dict, draws: int) -> bool:
    """Whether all frequencies are within five standard deviations of their probabilities."""
    return all(abs(counts[key] / draws - p) < 5 * sqrt(p * (1 - p) / draws) for key, p in chances.items())


def run_rounds(*overrides: str) -> tuple[object, LocalGrid, list[Round]]:
    """Run a small federation: the simulation, its grid, and its rounds."""
    simulation, text = small_simulation(*overrides)
    grid, rounds = LocalGrid(simulation.config.num_clients, text), []
    simulation.strategy.start(
        grid,
        num_rounds=simulation.config.rounds,
        on_round=rounds.append,
        evaluate_fn=partial(start_global_evaluation, simulation, grid),
    )
    return simulation, grid, rounds
