"""Small runs whose generator is diagnosed, and their tables."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from simulations.config import compose
from simulations.engine.base import ClientGrid
from simulations.federation.runner import run_federation
from simulations.setup.simulation import build_simulation
from tests.processes import TINY
from tests.small_runs import strategy_overrides

FOUR_ROUNDS = [*(option for option in TINY if not option.startswith("strategy.")), "engine=local", "rounds=4"]
"""Overrides of a small run of any strategy."""


def run_strategy(output: Path, strategy: str, *overrides: str, make_grid: Callable[[int, str], ClientGrid] | None = None) -> Path:
    """Run four rounds of a strategy in this process, and return the run folder."""
    build_simulation.cache_clear()
    words = [*FOUR_ROUNDS, f"strategy={strategy}", *strategy_overrides(strategy), *overrides, f"output={output}"]
    return run_federation(compose(words), make_grid)


def read_table(folder: Path, name: str = "generator") -> pd.DataFrame:
    """A CSV file of a run folder."""
    return pd.read_csv(folder / f"{name}.csv")
