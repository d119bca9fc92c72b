"""Times of the benchmarks: seconds of a call, and the ratio of two alternating measurements."""

import statistics
import time
from collections.abc import Callable

PAIRS = 7
"""Pairs of measurements of a ratio, unless the benchmark states another number."""


def timed(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(
    figure: str, reference: Callable[[], float], ours: Callable[[], float], pairs: int = PAIRS, unit: float = 1e3, name: str = "ms"
) -> float:
    """The median ratio of the reference's seconds over ours, measured in turn after one warm-up of both.

    Args:
        figure: name of the figure, for the line that states times and range.
        reference: runs the work of the reference and returns its seconds.
        ours: runs the same work on fedkd and returns its seconds.
        pairs: number of measurements.
        unit: factor from seconds to the printed times.
        name: unit of the printed times.
    """
    reference(), ours()
    times = [(reference(), ours()) for _ in range(pairs)]
    slow, fast = (statistics.median(column) * unit for column in zip(*times))
    ratios = sorted(one / other for one, other in times)
    print(f"# {figure}: {slow:.4g} against {fast:.4g} {name}; {pairs} pairs, ratios {ratios[0]:.2f} to {ratios[-1]:.2f}", flush=True)
    return statistics.median(ratios)
