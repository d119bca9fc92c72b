"""Seconds a round, split by phase: FedAvg and FedGen, on both engines. One line a figure: ``<key> <value>``.

``python -m simulations.benchmarks.round_phases data=mnist data.root=<folder>``: 10 of 20 clients, 20 local steps, batches of 32, one
thread a worker; the overrides are those of ``simulations.run``. The engines alternate within one run of this script; a value is
the median over repetitions of the median over rounds, the first two rounds left out. Absolute times are the machine's of the
hour: read the ratios.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import pandas as pd

from simulations.config import compose
from simulations.federation.runner import run_federation

PHASES = ("local_training", "server", "evaluation")

REPETITIONS, ROUNDS = 5, 10


def seconds(strategy: str, engine: str, overrides: list[str]) -> pd.Series:
    """Median seconds of each phase of a round, in a fresh run."""
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(None):
        fixed = [f"strategy={strategy}", f"engine={engine}", f"rounds={ROUNDS}", f"output={output}", "progress=false"]
        folder = run_federation(compose([*overrides, *fixed]))
        metrics = pd.read_csv(Path(folder) / "metrics.csv")
    return metrics[[f"{phase}_seconds" for phase in PHASES]][2:].median()


def main(overrides: list[str]) -> None:
    """Print all figures."""
    print(f"# {os.cpu_count()} cores, one thread a worker, {REPETITIONS} alternating repetitions of {ROUNDS} rounds: {' '.join(overrides)}")
    cases = [(strategy, engine) for strategy in ("fedavg", "fedgen") for engine in ("local", "ray")]
    runs: dict[tuple[str, str], list[pd.Series]] = {case: [] for case in cases}
    for _ in range(REPETITIONS):
        for case in cases:
            runs[case].append(seconds(*case, overrides))
    medians = {case: pd.DataFrame(values).median() for case, values in runs.items()}
    for (strategy, engine), median in medians.items():
        for phase in PHASES:
            print(f"{strategy}_{engine}_{phase}_seconds {median[f'{phase}_seconds']:.4f}")
        print(f"{strategy}_{engine}_round_seconds {median.sum():.4f}")
    for strategy in ("fedavg", "fedgen"):
        print(f"{strategy}_round_local_over_ray {medians[strategy, 'local'].sum() / medians[strategy, 'ray'].sum():.2f}")
    print(f"round_fedgen_over_fedavg_local_engine {medians['fedgen', 'local'].sum() / medians['fedavg', 'local'].sum():.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
