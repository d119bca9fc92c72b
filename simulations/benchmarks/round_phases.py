"""Seconds per round by phase, for FedAvg and FedGen on the engines ``local`` and ``ray``.

``python -m simulations.benchmarks.round_phases data=mnist data.root=FOLDER`` prints ``<figure> <value>``, one per line. Further words
``KEY=VALUE`` are those of ``fedkd run``; ``repetitions=N`` and ``rounds=N`` shorten the benchmark. The default is 10 of 20 clients, 20
local steps and batches of 32, with one thread per worker. Engines alternate. A value is the median over repetitions of the median over
rounds without the first two. Absolute times depend on the machine and its load, so compare ratios.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from simulations.cli.exit_codes import one_line_errors
from simulations.config import compose
from simulations.federation.runner import run_federation

PHASES = ("local_training", "server", "evaluation")

REPETITIONS, ROUNDS = 5, 10


def median_seconds(strategy: str, engine: str, rounds: int, overrides: list[str]) -> pd.Series:
    """The median seconds of each phase in a new run, without the first two rounds."""
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(None):
        fixed = [f"strategy={strategy}", f"engine={engine}", f"rounds={rounds}", f"output={output}", "progress=false"]
        folder = run_federation(compose([*overrides, *fixed]))
        metrics = pd.read_csv(Path(folder) / "metrics.csv")
    return metrics[[f"{phase}_seconds" for phase in PHASES]][2:].median()


def main(words: Sequence[str]) -> None:
    """Print all figures."""
    own = dict(word.split("=", 1) for word in words if word.startswith(("repetitions=", "rounds=")))
    repetitions, rounds = int(own.get("repetitions", REPETITIONS)), int(own.get("rounds", ROUNDS))
    overrides = [word for word in words if not word.startswith(("repetitions=", "rounds="))]
    workload = f"{repetitions} repetitions of {rounds} rounds: {' '.join(overrides)}"
    print(f"# {os.cpu_count()} cores, one thread per worker, {workload}", flush=True)
    cases = [(strategy, engine) for strategy in ("fedavg", "fedgen") for engine in ("local", "ray")]
    runs: dict[tuple[str, str], list[pd.Series]] = {case: [] for case in cases}
    for _ in range(repetitions):
        for strategy, engine in cases:
            runs[strategy, engine].append(median_seconds(strategy, engine, rounds, overrides))
    medians = {case: pd.DataFrame(values).median() for case, values in runs.items()}
    for (strategy, engine), median in medians.items():
        for phase in PHASES:
            print(f"{strategy}_{engine}_{phase}_seconds {median[f'{phase}_seconds']:.4f}")
        print(f"{strategy}_{engine}_round_seconds {median.sum():.4f}")
    for strategy in ("fedavg", "fedgen"):
        print(f"{strategy}_round_local_over_ray {medians[strategy, 'local'].sum() / medians[strategy, 'ray'].sum():.2f}")
    print(f"round_fedgen_over_fedavg_local_engine {medians['fedgen', 'local'].sum() / medians['fedavg', 'local'].sum():.2f}")


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
