"""Losses of federated algorithms: equations, gradients, and invariances."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedkd.losses.contrastive import model_contrastive
from fedkd.losses.cross_entropy import class_cross_entropy, cross_entropy
from fedkd.losses.decoupled_kl import not_true_divergence
from fedkd.losses.diversity import diversity, noise_distances
from fedkd.losses.kl import kl_divergence
from tests import oracles

RNG = np.random.default_rng(0)
A, B, Y = 3 * RNG.standard_normal((7, 5)), 3 * RNG.standard_normal((7, 5)), RNG.integers(0, 5, 7)
NOISE = 0.3 * RNG.standard_normal((7, 2))
CASES = {
    "cross_entropy": (lambda z: cross_entropy(z, torch.from_numpy(Y)).mean(), lambda z: oracles.cross_entropy(z, Y).mean()),
    "kl student T=1": (lambda z: kl_divergence(torch.from_numpy(B), z).mean(), lambda z: oracles.kl(B, z).mean()),
    "kl student T=4": (lambda z: kl_divergence(torch.from_numpy(B), z, 4.0).mean(), lambda z: oracles.kl(B, z, 4.0).mean()),
    "kl teacher T=2": (lambda z: kl_divergence(z, torch.from_numpy(B), 2.0).mean(), lambda z: oracles.kl(z, B, 2.0).mean()),
    **{
        f"not true T={T:g}": (
            lambda z, T=T: not_true_divergence(torch.from_numpy(B), z, torch.from_numpy(Y), T).mean(),
            lambda z, T=T: oracles.not_true(B, z, Y, T).mean(),
        )
        for T in (1.0, 3.0)
    },
    "contrastive": (
        lambda z: model_contrastive(z, torch.from_numpy(B), torch.from_numpy(B[::-1].copy()), 0.5).mean(),
        lambda z: oracles.contrastive(z, B, B[::-1], 0.5).mean(),
    ),
    "diversity": (lambda z: diversity(noise_distances(torch.from_numpy(NOISE)), z), lambda z: oracles.diversity(NOISE, z)),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_the_equations(case):
    ours, oracle = CASES[case]
    z = torch.from_numpy(A.copy()).requires_grad_()
    value = ours(z)
    value.backward()
    assert value.item() == pytest.approx(oracle(A), rel=1e-12, abs=0) and value.item() > 0.01
    np.testing.assert_allclose(z.grad.numpy(), oracles.gradient(lambda at: oracle(at["z"]), {"z": A})["z"], atol=1e-8)


def test_the_oracle_s_numerical_gradient_is_correct_for_a_quadratic():
    at = RNG.standard_normal((2, 3))
    np.testing.assert_allclose(oracles.gradient(lambda a: (a["w"] ** 2).sum(), {"w": at})["w"], 2 * at, atol=1e-8)


@pytest.mark.parametrize(
    ("temperature", "value", "slope"),
    [(1.0, 0.0546175, (-0.0561582, -0.0206595, 0.0768177)), (4.0, 0.3156777, (-0.1864265, -0.1451891, 0.3316155))],
)
def test_kl_of_an_example(temperature, value, slope):
    student, teacher = torch.tensor([[1.0, 0, -1]], dtype=torch.float64), torch.tensor([[2.0, 1, -2]], dtype=torch.float64)
    found = kl_divergence(teacher, student.requires_grad_(), temperature)
    found.sum().backward()
    assert found.item() == pytest.approx(value, abs=1e-7) and student.grad[0].tolist() == pytest.approx(slope, abs=1e-7)


def test_kl_is_zero_at_equality_positive_elsewhere_and_invariant_to_a_constant():
    a, b = torch.from_numpy(A), torch.from_numpy(B)
    assert_close(kl_divergence(a, a), torch.zeros(7, dtype=torch.float64), atol=1e-14, rtol=0)
    assert (kl_divergence(a, b) > 0).all()
    assert_close(kl_divergence(a + 5, b - 3), kl_divergence(a, b), atol=1e-12, rtol=0)


def test_losses_are_one_number_per_example_and_permuting_the_batch_permutes_them():
    a, b, y = (torch.from_numpy(array) for array in (A, B, Y))
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    for loss in (lambda i: cross_entropy(a[i], y[i]), lambda i: kl_divergence(a[i], b[i])):
        assert loss(torch.arange(7)).shape == (7,)
        assert torch.equal(loss(order), loss(torch.arange(7))[order])
    assert_close(diversity(noise_distances(a[order]), b[order]), diversity(noise_distances(a), b), atol=1e-15, rtol=1e-12)


def test_cross_entropy_of_classes_takes_any_leading_shape():
    logits, y = torch.from_numpy(A[:6]).view(2, 3, 5), torch.from_numpy(Y[:6]).view(2, 3)
    assert torch.equal(class_cross_entropy(logits, y), cross_entropy(logits.view(6, 5), y.view(6)).view(2, 3))


def test_losses_stay_finite_for_large_logits():
    large = torch.tensor([[1e4, 0.0, -1e4]])
    assert torch.isfinite(kl_divergence(large, -large)).all()
    assert cross_entropy(large, torch.tensor([0])).item() == 0


@pytest.mark.parametrize(
    ("outputs", "value"), [([[0, 0, 0], [1, 2, 3]], 0.36787944), ([[1, 2, 3], [1, 2, 3]], 1.0)], ids=["different", "equal"]
)
def test_diversity_of_two_examples(outputs, value):
    noise = torch.tensor([[0.0, 0], [1, 1]], dtype=torch.float64)
    assert diversity(noise_distances(noise), torch.tensor(outputs, dtype=torch.float64)).item() == pytest.approx(value, abs=1e-8)


def test_diversity_falls_towards_zero_as_outputs_move_apart():
    noise, output = torch.from_numpy(A), torch.from_numpy(B)
    values = [diversity(noise_distances(noise), spread * output).item() for spread in (0, 0.1, 1, 10)]
    assert values == sorted(values, reverse=True) and values[0] == 1 and 0 <= values[-1] < 1e-6


@pytest.mark.parametrize(("temperature", "value"), [(1.0, 0.1698226), (3.0, 0.4297465)])
def test_not_true_divergence_of_an_example(temperature, value):
    """The student's logit of the label has no influence and no gradient."""
    student, teacher = torch.tensor([[1.0, 0, -1]], dtype=torch.float64), torch.tensor([[2.0, 1, -2]], dtype=torch.float64)
    found = not_true_divergence(teacher, student.requires_grad_(), torch.tensor([0]), temperature)
    assert found.item() == pytest.approx(value, abs=1e-7)
    (slope,) = torch.autograd.grad(found.sum(), student)
    assert slope[0, 0] == 0 and slope[0, 1] != 0
    other = torch.tensor([[9.0, 0, -1]], dtype=torch.float64)
    assert not_true_divergence(teacher, other, torch.tensor([0]), temperature).item() == found.item()


@pytest.mark.parametrize(
    ("near", "far", "value"), [((1, 0), (1, 0), 0.6931472), ((1, 0), (0, 1), 0.1269280), ((-1, 0), (1, 0), 4.0181499)],
    ids=["equal", "orthogonal to far", "opposite to near"],
)  # fmt: skip
def test_model_contrastive_loss_at_temperature_one_half(near, far, value):
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    found = model_contrastive(3 * z, *(2 * torch.tensor([other], dtype=torch.float64) for other in (near, far)), 0.5)
    assert found.item() == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(precision):
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).to(precision)
    other, y = logits.flip(0), torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16):
        values = kl_divergence(logits, other, 4.0), cross_entropy(logits, y)
    assert [value.dtype for value in values] == [torch.float32] * 2
    assert_close(values[0], kl_divergence(logits.float(), other.float(), 4.0), rtol=0, atol=0)
    assert_close(values[1], cross_entropy(logits.float(), y), rtol=0, atol=0)
