"""Time of a report of many run folders.

``python -m simulations.benchmarks.report [folders=1000] [rounds=100]`` trains one small run and copies it to folders of ten strategies, ten
alphas and as many seeds as needed, with slightly different accuracies. It prints ``<figure> <value>``, one per line. The line that begins
with ``#`` states the workload.

``seconds``: wall-clock time of ``python -m simulations.report`` with all tables and figures, as a process of its own.
``seconds_tables``: the same without figures.
``times_reading``: the first figure over the time that pandas needs to read the same CSV files.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from simulations.benchmarks.measurement import timed
from simulations.cli.exit_codes import one_line_errors
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.process import configure_process

STRATEGIES = ("fedavg", "fedgen", "fedprox", "fedensemble", "feddistill", "scaffold", "moon", "fedntd", "fedgkd", "fedgen_paper")

ALPHAS = tuple(tenths / 10 for tenths in range(1, 11))


def make_folders(parent: Path, number: int, rounds: int) -> None:
    """Write ``number`` run folders into ``parent``."""
    output = f"output={parent.parent / 'first'}"
    overrides = ("data=digits", "engine=local", "local_steps=1", f"rounds={rounds}", "progress=false", output)
    first = run_federation(compose(overrides))
    tables = {name: pd.read_csv(first / f"{name}.csv") for name in ("metrics", "clients")}
    for index in range(number):
        seed, setting = divmod(index, len(STRATEGIES) * len(ALPHAS))
        strategy, alpha = STRATEGIES[setting % len(STRATEGIES)], ALPHAS[setting // len(STRATEGIES)]
        folder = parent / f"{strategy}-{alpha}-{seed}"
        shutil.copytree(first, folder)
        config = composed(strategy, alpha, overrides)
        config.seed = seed
        OmegaConf.save(config, folder / "config.yaml", resolve=True)  # as runs write it
        factor = np.random.default_rng(index).uniform(0.8, 1.0)
        for name, table in tables.items():
            changed = table.copy()
            accuracies = [column for column in table.columns if "accuracy" in str(column)]
            changed[accuracies] = table[accuracies] * factor
            changed.to_csv(folder / f"{name}.csv", index=False)


@cache
def composed(strategy: str, alpha: float, overrides: tuple[str, ...]) -> DictConfig:
    """The configuration of a strategy at one alpha."""
    return compose([*overrides, f"strategy={strategy}", f"partition.alpha={alpha}"])


def report_seconds(parent: Path, *options: str) -> float:
    """Wall-clock time of the report's command."""
    command = [sys.executable, "-m", "simulations.report", str(parent), "--output", str(parent.parent / "report"), *options]
    return timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def main(words: Sequence[str]) -> None:
    """Print all figures."""
    own = dict(word.split("=", 1) for word in words)
    number, rounds = int(own.get("folders", 1000)), int(own.get("rounds", 100))
    configure_process()
    with tempfile.TemporaryDirectory() as temporary:
        parent = Path(temporary) / "runs"
        make_folders(parent, number, rounds)
        files = [path for name in ("metrics", "clients") for path in parent.glob(f"*/{name}.csv")]
        reading = timed(lambda: [pd.read_csv(path) for path in files])
        tables, whole = report_seconds(parent, "--no-figures"), report_seconds(parent)
        num_figures = len(list((parent.parent / "report").glob("*.png")))
        print(f"# {number} folders of {rounds} rounds, {num_figures} figures; reading {len(files)} files took {reading:.2f} s")
        print(f"seconds {whole:.1f}\nseconds_tables {tables:.1f}\ntimes_reading {whole / reading:.2f}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
