"""The information of representations: equations, limits, and principal components."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from fedkd.losses.probabilistic_transfer import KERNELS
from fedkd.metrics.mutual_information import binned_mutual_information, principal_components, quadratic_mutual_information
from tests import distillation_oracles
from tests.fedkd.losses.distillation_cases import A, B, Y, assert_recorded_and_mapped, rotation_matrix, tensor


@pytest.mark.parametrize("kernel", KERNELS)
def test_quadratic_information_equals_its_equation(kernel):
    found = quadratic_mutual_information(tensor(A), torch.from_numpy(Y), 5, kernel=kernel).item()
    assert found == pytest.approx(distillation_oracles.quadratic_information(distillation_oracles.kernel(kernel, A), Y), rel=1e-9)
    more = quadratic_mutual_information(tensor(A), torch.from_numpy(Y), 9, kernel=kernel).item()
    assert more == pytest.approx(found, rel=1e-12), "classes without examples add nothing"


def test_quadratic_information_of_one_class_equal_examples_and_separate_classes():
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    apart = tensor(B) * 0.1 + 5 * y[:, None]
    measure = partial(quadratic_mutual_information, num_classes=2, kernel="rbf")
    assert measure(tensor(A), 0 * y).item() == pytest.approx(0, abs=1e-15)
    assert measure(torch.ones(6, 5, dtype=torch.float64), y).item() == pytest.approx(0, abs=1e-15)
    assert measure(apart, y).item() > 0.1 and measure(apart, torch.tensor([0, 1, 0, 1, 0, 1])).item() < 0.05


def test_binned_information_equals_counted_frequencies():
    """Two features of different variance are their own principal components, and are divided into thirds."""
    rng = np.random.default_rng(2)
    grid = np.array([(3.0 * i, j) for i in range(3) for j in range(3)] * 4) - [3, 1]
    y = np.where(rng.random(36) < 0.3, rng.integers(0, 3, 36), np.arange(36) % 3)
    found = binned_mutual_information(tensor(grid), torch.from_numpy(y), 3, num_components=2, num_bins=3).item()
    assert found == pytest.approx(distillation_oracles.mutual_information(grid, y), rel=1e-10) and 0.2 < found < math.log(3)
    one = binned_mutual_information(tensor(grid), torch.from_numpy(y), 3, num_components=1, num_bins=3).item()
    assert one == pytest.approx(distillation_oracles.mutual_information(grid[:, 0], y), rel=1e-10) and one < found


def test_binned_information_of_sufficient_and_of_independent_representations():
    measure = partial(binned_mutual_information, num_classes=4, num_bins=4, num_components=1)
    y = torch.arange(200) % 4
    noise = tensor(np.random.default_rng(3).standard_normal((200, 6)))
    assert measure(y[:, None] + 0.01 * noise[:, :1], y).item() == pytest.approx(math.log(4), rel=1e-12)
    assert measure(torch.full((200, 6), 0.1), y).item() == pytest.approx(0, abs=1e-12), "one cell"
    assert 0 < measure(noise, y).item() < 3 * (4 - 1) * (4 - 1) / (2 * 200), "as large as its bias"
    several = partial(binned_mutual_information, num_classes=4, num_bins=3, num_components=2)
    spread = noise * torch.arange(1, 7)
    assert several(-2 * spread @ rotation_matrix(6) + 1, y).item() == pytest.approx(several(spread, y).item(), abs=0.03)


@pytest.mark.parametrize("shape", [(30, 4), (4, 30)])
def test_principal_components_equal_those_of_the_singular_value_decomposition(shape):
    x = np.random.default_rng(4).standard_normal(shape)
    left, values, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    found = principal_components(tensor(x), 2).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(left * values)[:, :2], atol=1e-10)
    flat = principal_components(tensor(np.outer(x[:, 0], np.ones(3))), 2)
    assert (flat[:, 0] != 0).all() and (flat[:, 1] == 0).all(), "rounding errors are no feature"


def test_quadratic_information_can_be_recorded_and_vectorized():
    assert_recorded_and_mapped(lambda x: quadratic_mutual_information(x, torch.from_numpy(Y), 5, kernel="student_t"), tensor(A))


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (partial(quadratic_mutual_information, kernel="combined"), "kernel must be one of"),
        (partial(binned_mutual_information, num_components=0, num_bins=2), "num_components must be >= 1"),
        (partial(binned_mutual_information, num_components=1, num_bins=1), "num_bins must be >= 2"),
    ],
)
def test_invalid_arguments_are_refused(measure, message):
    with pytest.raises(ValueError, match=message):
        measure(tensor(A), torch.from_numpy(Y), 5)
