"""Aggregators: the results of public code, constants, the neutral values, and their ranges."""

import pytest
import torch

from fedkd.errors import ConfigError
from fedkd.federation.aggregators import CenteredClipping, GeometricMedian, Krum, Mean, Median, TrimmedMean
from tests.public_code import public_code

SCALARS = torch.tensor([[0.0], [1.0], [3.0], [4.5], [10.0]], dtype=torch.float64)


def uniform(updates):
    """Equal weights."""
    return torch.full((len(updates),), 1 / len(updates), dtype=updates.dtype)


def close(left, right, tolerance=1e-12):
    return torch.allclose(left, right, rtol=0, atol=tolerance)


@pytest.mark.parametrize("number", [8, 9])
def test_medians_and_trimmed_means_of_public_code(number):
    arrays = public_code("robust")
    x = arrays[f"x{number}"]
    assert close(Median()(x, uniform(x), None), arrays[f"median{number}"])
    for b in (1, 2):
        assert close(TrimmedMean(num_trimmed=b)(x, uniform(x), None), arrays[f"trimmed{number}_b{b}"])


def test_krum_of_public_code():
    """Flower's, whose mean of several updates has the weights of the clients."""
    arrays = public_code("robust")
    x, sizes = arrays["x9"], arrays["sizes9"].to(torch.float64)
    weights = sizes / sizes.sum()
    assert close(Krum(num_malicious=2, num_selected=1)(x, weights, None), arrays["krum9"])
    assert close(Krum(num_malicious=2, num_selected=4)(x, weights, None), arrays["multikrum9_keep4"])


def test_the_geometric_median_of_public_code():
    arrays = public_code("robust")
    x, sizes = arrays["x9"], arrays["sizes9"].to(torch.float64)
    weights = sizes / sizes.sum()
    for iterations, name in ((100, "rfa9_weighted"), (4, "rfa9_weighted_maxiter4")):
        rule = GeometricMedian(max_iterations=iterations, smoothing=1e-5, tolerance=1e-6)
        assert close(rule(x, weights, None), arrays[name], 1e-9)


@pytest.mark.parametrize("number", [8, 9])
@pytest.mark.parametrize("iterations", [1, 3])
def test_centered_clipping_of_public_code(number, iterations):
    """In the second round it begins at the result of the first one."""
    arrays, rule = public_code("robust"), CenteredClipping(radius=2.0, num_iterations=iterations)
    x, last = arrays[f"x{number}"], None
    for shift, expected in zip((0.0, 0.1), arrays[f"clip{number}_l{iterations}"]):
        last = rule(x + shift, uniform(x), last)
        assert close(last, expected)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Median(), 3.0),
        (TrimmedMean(num_trimmed=1), 2.8333333),
        (Krum(num_malicious=1, num_selected=1), 1.0),
        (Krum(num_malicious=1, num_selected=2), 2.0),
        (CenteredClipping(radius=2.0, num_iterations=1), 1.4),
    ],
)
def test_constants(rule, expected):
    assert rule(SCALARS, uniform(SCALARS), None).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    "rule",
    [
        Mean(),
        TrimmedMean(num_trimmed=0),
        Krum(num_malicious=1, num_selected=5),
        GeometricMedian(max_iterations=0, smoothing=1e-5, tolerance=0.0),
        CenteredClipping(radius=1e6, num_iterations=1),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_neutral_values_are_the_mean(rule):
    assert rule(SCALARS, uniform(SCALARS), None).item() == pytest.approx(3.7, abs=1e-12)


def test_one_client_can_send_anything():
    """The mean follows it."""
    honest = torch.randn(8, 5, dtype=torch.float64)
    x = torch.cat([honest, torch.full((1, 5), 1e6, dtype=torch.float64)])
    rules = (Median(), TrimmedMean(num_trimmed=1), Krum(num_malicious=1, num_selected=1), CenteredClipping(radius=1.0, num_iterations=1))
    geometric = GeometricMedian(max_iterations=100, smoothing=1e-5, tolerance=1e-9)
    for rule in (*rules, geometric):
        assert rule(x, uniform(x), None).norm() < 5, rule
    assert x.mean(0).norm() > 1e5


def test_equal_updates_have_no_distance():
    x = torch.full((5, 3), 0.1)
    assert torch.equal(Krum(num_malicious=1, num_selected=1)(x, uniform(x), None), x[0])
    assert close(GeometricMedian(max_iterations=5, smoothing=1e-5, tolerance=0.0)(x, uniform(x), None), x[0], 1e-6)
    assert torch.isfinite(CenteredClipping(radius=1.0, num_iterations=2)(torch.zeros(3, 2), torch.full((3,), 1 / 3), None)).all()


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: TrimmedMean(num_trimmed=-1), "num_trimmed must be >= 0"),
        (lambda: TrimmedMean(num_trimmed=3).check_cohort(6), "num_trimmed must leave one of the 6 clients"),
        (lambda: Krum(num_malicious=-1, num_selected=1), "num_malicious must be >= 0"),
        (lambda: Krum(num_malicious=0, num_selected=0), "num_selected must be > 0"),
        (lambda: Krum(num_malicious=4, num_selected=1).check_cohort(10), "num_malicious must be a number f with 2 f . 2 < 10"),
        (lambda: GeometricMedian(max_iterations=-1, smoothing=1.0, tolerance=0.0), "max_iterations must be >= 0"),
        (lambda: GeometricMedian(max_iterations=1, smoothing=0.0, tolerance=0.0), "smoothing must be > 0"),
        (lambda: GeometricMedian(max_iterations=1, smoothing=1.0, tolerance=-1.0), "tolerance must be >= 0"),
        (lambda: CenteredClipping(radius=0.0, num_iterations=1), "radius must be > 0"),
        (lambda: CenteredClipping(radius=1.0, num_iterations=0), "num_iterations must be > 0"),
    ],
)
def test_ranges(make, rule):
    with pytest.raises(ConfigError, match=f"^{rule}"):
        make()
