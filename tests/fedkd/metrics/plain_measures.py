"""Measures of a generator's quality by plain loops."""

import math
from itertools import combinations

import numpy as np


def plain_diversity(z: np.ndarray) -> float:
    """The mean distance of two points, by a loop."""
    return float(np.mean([math.dist(a, b) for a, b in combinations(z, 2)]))


def plain_coverage(real: np.ndarray, generated: np.ndarray, k: int = 5) -> float:
    """The fraction of real points with a generated point within the distance of their k-th neighbor, by loops."""
    covered = 0
    for i, point in enumerate(real):
        radius = sorted(math.dist(point, other) for j, other in enumerate(real) if j != i)[k - 1]
        covered += any(math.dist(point, one) <= radius for one in generated)
    return covered / len(real)
