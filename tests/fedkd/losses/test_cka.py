"""Centered kernel alignment: values of examples, invariances, and both estimates."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedkd.losses.cka import biased_cka, cka, hsic_values, unbiased_cka, unbiased_hsic
from tests import distillation_oracles
from tests.fedkd.losses.distillation_cases import SMALL, A, B, assert_recorded_and_mapped, rotation_matrix, tensor

X = tensor([[1, 0], [0, 1], [1, 1], [2, 0], [0, 3]])
OTHER = tensor([[0, 1], [1, 0], [1, 2], [0, 1], [2, 2]])


def test_cka_of_an_example():
    """The uncentered value would be 0.8468188."""
    assert_close(hsic_values(X, OTHER), tensor([0.7333333, 2.0, 0.8]), atol=5e-8, rtol=0)
    assert unbiased_cka(X, OTHER).item() == pytest.approx(0.5797509, abs=5e-8)
    assert biased_cka(X, OTHER).item() == pytest.approx(0.7343898, abs=5e-8)
    k, other = X @ X.T, OTHER @ OTHER.T
    assert ((k * other).sum() / k.norm() / other.norm()).item() == pytest.approx(0.8468188, abs=5e-8)


@pytest.mark.parametrize(("measure", "estimate"), [(unbiased_cka, distillation_oracles.hsic1), (biased_cka, distillation_oracles.hsic0)])
def test_cka_equals_its_equation_and_is_invariant_to_rotation_factor_and_shift(measure, estimate):
    x, y = tensor(SMALL), tensor(A)  # [6, 2, 2, 4] and [6, 5]
    value = measure(x, y)
    assert value.item() == pytest.approx(distillation_oracles.cka(SMALL.reshape(6, -1), A, estimate), rel=1e-10)
    assert measure(y, x).item() == pytest.approx(value.item(), rel=1e-12)
    for same in (y @ rotation_matrix(5), -3 * y, y + torch.arange(5)):
        assert measure(x, same).item() == pytest.approx(value.item(), rel=1e-10)
        assert measure(y, same).item() == pytest.approx(1, rel=1e-12)
    assert abs(measure(x, y * torch.arange(1, 6)).item() - value.item()) > 1e-3
    assert torch.autograd.gradcheck(measure, (x.requires_grad_(), tensor(A).requires_grad_()))


def test_unbiased_hsic_equals_the_published_equation():
    k, other = A @ A.T, SMALL.reshape(6, -1) @ SMALL.reshape(6, -1).T
    assert unbiased_hsic(tensor(k), tensor(other)).item() == pytest.approx(distillation_oracles.hsic1(k, other), rel=1e-10)


def test_cka_of_several_batches_uses_means_of_hsic():
    values = torch.stack([hsic_values(tensor(A), tensor(B)), hsic_values(tensor(B) ** 2, tensor(A))])
    cross, one, other = values.mean(0).tolist()
    assert cka(values.mean(0)).item() == pytest.approx(cross / math.sqrt(one * other))
    assert cka(values).mean().item() != pytest.approx(cka(values.mean(0)).item(), rel=0.05)


def test_unbiased_cka_of_independent_wide_features_is_near_zero():
    x, y = (tensor(np.random.default_rng(seed).standard_normal((16, 400))) for seed in (0, 1))
    assert abs(unbiased_cka(x, y).item()) < 0.1 and biased_cka(x, y).item() > 0.9
    assert unbiased_cka(torch.zeros(6, 2), tensor(A)).item() == 0, "a constant layer"
    assert unbiased_cka(X.bfloat16(), OTHER.half()).dtype == torch.float32


@pytest.mark.parametrize("measure", [unbiased_cka, biased_cka])
def test_cka_can_be_recorded_and_vectorized(measure):
    assert_recorded_and_mapped(lambda x: measure(x, tensor(B)), tensor(A))


def test_the_unbiased_estimate_needs_four_examples():
    with pytest.raises(ValueError, match="batch_size must be > 3 .*, got 3"):
        unbiased_cka(tensor(A)[:3], tensor(A)[:3])
