"""Flower's own runtime as an opponent: whole simulations in processes of their own, round after round."""

import subprocess
import sys
from collections.abc import Iterator

ROUNDS = 6
"""Rounds of one simulation, of which the first, in which actors load what they need, is left out."""


def flower_seconds(workload: str, overrides: list[str]) -> Iterator[float]:
    """Seconds of warm rounds of ``workload`` (see :mod:`simulations.benchmarks.flower`), from one simulation after the other.

    A simulation pauses only between its rounds' lines, so what the caller does in between runs beside it: the caller must take all
    rounds of a simulation in a row. That is done here: a simulation is run to its end before its first round is handed out.

    Raises:
        RuntimeError: the simulation failed; it says why on standard error.
    """
    command = [sys.executable, "-m", "simulations.benchmarks.flower", workload, str(ROUNDS), *overrides]
    while True:
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        seconds = [float(line) for line in ended.stdout.split() if line.replace(".", "", 1).isdigit()]
        if ended.returncode or len(seconds) < ROUNDS:
            raise RuntimeError(f"Flower's simulation ended with exit code {ended.returncode} after {len(seconds)} rounds")
        yield from seconds[1:]
