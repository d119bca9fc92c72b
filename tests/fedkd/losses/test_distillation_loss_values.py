"""Losses of centralized distillation: values of examples, invariances of each loss, and invalid arguments."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedkd.losses.attention_transfer import attention_transfer
from fedkd.losses.decoupled_kl import decoupled, non_target_class, target_class
from fedkd.losses.hint import hint
from fedkd.losses.kl import kl_divergence
from fedkd.losses.probabilistic_transfer import KERNELS, conditional, cosine_knowledge_transfer
from fedkd.losses.similarity_preserving import similarity_preserving
from tests import distillation_oracles
from tests.fedkd.losses.distillation_cases import MAPS, SMALL, STUDENT_LOGITS, TEACHER_LOGITS, A, B, Y, pkt, rotation_matrix, tensor

TWO, SAME = [[1, 0], [0, 1]], [[1, 1], [1, 1]]
THREE, TEACHER = [[1, 0], [1, 1], [0, 2]], [[1, 0], [0, 1], [1, 1]]


# ---------------------------------------------------------------------------------------------------- values of examples
def test_attention_transfer_of_an_example():
    teacher, student = tensor([[[[1, 2], [3, 4]]]]), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    value = attention_transfer(teacher, student).item()
    assert value == pytest.approx(0.1013795, abs=5e-8)
    assert 4 * value == pytest.approx(0.4055180, abs=5e-8) and math.sqrt(4 * value) == pytest.approx(0.6368029, abs=5e-8)


@pytest.mark.parametrize(("teacher", "student", "value"), [(SAME, TWO, 0.2928932), (TEACHER, THREE, 0.1431822)])
def test_similarity_preserving_of_two_examples(teacher, student, value):
    assert similarity_preserving(tensor(teacher), tensor(student)).mean().item() == pytest.approx(value, abs=5e-8)


@pytest.mark.parametrize(
    ("teacher", "student", "kernel", "divergence", "diagonal", "value"),
    [
        (SAME, TWO, "cosine", "kl", True, 0.0294458), (SAME, TWO, "cosine", "jeffreys", True, 0.0577623),
        (SAME, TWO, "student_t", "jeffreys", True, 0.0910746), (SAME, TWO, "combined", "jeffreys", True, 0.1488369),
        (SAME, TWO, "combined", "jeffreys", False, 0.0),
        (TEACHER, THREE, "cosine", "jeffreys", True, 0.0300768), (TEACHER, THREE, "student_t", "jeffreys", True, 0.0119473),
        (TEACHER, THREE, "combined", "jeffreys", True, 0.0420241),
        (TEACHER, THREE, "cosine", "jeffreys", False, 0.0465639), (TEACHER, THREE, "student_t", "jeffreys", False, 0.0185620),
        (TEACHER, THREE, "combined", "jeffreys", False, 0.0651260),
    ],
)  # fmt: skip
def test_probabilistic_transfer_of_two_examples(teacher, student, kernel, divergence, diagonal, value):
    """The Student-t kernel agrees to the last digit. The cosine kernel adds 1e-6 to norms."""
    found = pkt(tensor(teacher), tensor(student), kernel=kernel, divergence=divergence, diagonal=diagonal).mean().item()
    assert found == pytest.approx(value, abs=1e-7 if kernel == "student_t" else 1e-6)


def test_cosine_transfer_of_an_example():
    assert cosine_knowledge_transfer(tensor(SAME), tensor(TWO)).mean().item() == pytest.approx(0.0294458, abs=1e-6)


def test_decoupled_distillation_of_an_example():
    teacher, student, y = tensor(TEACHER_LOGITS), tensor(STUDENT_LOGITS), torch.tensor([0])
    target, others = (term(teacher, student, y, 4.0).item() for term in (target_class, non_target_class))
    assert (target, others) == pytest.approx((0.0707503, 0.4585242), abs=5e-8)
    assert decoupled(teacher, student, y, 1, 8, 4.0).item() == pytest.approx(3.7389440, abs=5e-7)
    share = (teacher / 4).softmax(-1)[0, 0].item()
    assert target + (1 - share) * others == pytest.approx(0.3156777, abs=5e-8)


def test_kl_at_a_high_temperature_is_half_the_variance_of_the_difference_of_logits():
    """The limit of Hinton et al.: ``|centered difference|^2 / (2 C)``."""
    teacher, student = tensor(TEACHER_LOGITS), tensor(STUDENT_LOGITS)
    assert kl_divergence(teacher, student, 1000.0).item() == pytest.approx(0.44402, abs=5e-6)
    assert ((teacher - student).var(correction=0) / 2).item() == pytest.approx(0.4444444, abs=5e-8)


# ----------------------------------------------------------------------------------------------------------- invariances
def test_attention_transfer_is_invariant_to_factors_of_examples_and_pools_larger_maps():
    """Features that are constant on patches are pooled to the original features."""
    t, s, factor = tensor(MAPS), tensor(MAPS).flip(0), torch.tensor([0.5, 3, -1, 7, 2, 9], dtype=torch.float64)[:, None, None, None]
    assert_close(attention_transfer(factor * t, s), attention_transfer(t, s), rtol=1e-10, atol=0)
    blown = tensor(SMALL).repeat_interleave(2, -2).repeat_interleave(3, -1)
    assert_close(attention_transfer(blown, tensor(SMALL)), torch.zeros(6, dtype=torch.float64), atol=1e-25, rtol=0)
    assert_close(
        attention_transfer(tensor(SMALL).flip(0), blown), attention_transfer(tensor(SMALL).flip(0), tensor(SMALL)), rtol=1e-10, atol=0
    )


def test_similarity_preserving_depends_on_angles_and_relative_norms_only():
    t, s, turn = tensor(B), tensor(A), rotation_matrix(5)
    value = similarity_preserving(t, s)
    for same in (-3 * s, s @ turn, s.view(6, 1, 5, 1)):
        assert_close(similarity_preserving(t, same), value, rtol=1e-10, atol=0)
    assert_close(similarity_preserving(s, -2 * s @ turn), torch.zeros(6, dtype=torch.float64), atol=1e-28, rtol=0)
    uneven = s * torch.arange(1, 7)[:, None]
    assert (similarity_preserving(t, uneven) - value).abs().max() > 0.01
    assert similarity_preserving(t[:1], s[:1]).item() == 0, "a single example"
    assert value.mean() <= 4 / 6 and similarity_preserving(t.relu(), s.relu()).mean() <= 2 / 6


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_have_their_invariances(kernel, diagonal):
    """All are invariant to rotations, the cosine kernel to factors of examples, and the other kernels to shifts."""
    t, s, turn, factors = tensor(B), tensor(A), rotation_matrix(5), torch.arange(1, 7)[:, None]
    loss = partial(pkt, kernel=kernel, divergence="jeffreys", diagonal=diagonal)
    value = loss(t, s)
    scaled, shifted = (((loss(t, other) - value).abs() / value).max() for other in (s * factors, s + 1))
    assert_close(loss(t @ turn, s @ turn), value, rtol=1e-9, atol=0)
    assert (scaled < 1e-5) == (kernel == "cosine") and (shifted < 1e-9) == (kernel != "cosine")
    if kernel == "adaptive_rbf":
        assert ((loss(t, 5 * s) - value).abs() / value).max() < 0.01, "its width adapts to the scale"


@pytest.mark.parametrize("kernel", KERNELS)
def test_conditional_probabilities_are_normalized_kernels(kernel):
    with_self, without = (conditional(tensor(A), kernel, diagonal) for diagonal in (True, False))
    for probabilities in (with_self, without):
        assert_close(probabilities.sum(-1), torch.ones(6, dtype=torch.float64))
    assert (with_self.diagonal() > 0.1).all() and (without.diagonal() == 0).all()
    k = distillation_oracles.kernel(kernel, A)
    np.testing.assert_allclose(with_self.numpy(), k / k.sum(1, keepdims=True), rtol=1e-9)
    np.testing.assert_allclose(without.numpy()[0, 1:], k[0, 1:] / k[0, 1:].sum(), rtol=1e-9)


def test_kernels_of_equal_and_of_zero_examples():
    x = tensor([[0, 0], [3, 4]])
    assert_close(KERNELS["student_t"](x).exp().diagonal(), torch.full((2,), 1 / 1.001, dtype=torch.float64), rtol=1e-12, atol=0)
    assert_close(KERNELS["cosine"](x).exp()[0], torch.full((2,), 0.5, dtype=torch.float64), rtol=1e-15, atol=0)


def test_distant_neighbors_have_a_probability_and_a_gradient():
    """exp(-d) of these distances is 0 in float32."""
    s = (1e3 * tensor(A).float()).requires_grad_()
    value = pkt(1e3 * tensor(B).float(), s, kernel="rbf", divergence="jeffreys", diagonal=False)
    value.sum().backward()
    assert value.isfinite().all() and value.max() > 100 and s.grad.isfinite().all() and s.grad.norm() > 0


def test_plain_distillation_is_the_weighted_sum_of_its_decoupled_parts():
    teacher, student, y = tensor(A), tensor(B), torch.from_numpy(Y)
    for temperature in (1.0, 4.0):
        p = (teacher / temperature).softmax(-1).gather(-1, y[:, None])[:, 0]
        parts = (term(teacher, student, y, temperature) for term in (target_class, non_target_class))
        assert_close(kl_divergence(teacher, student, temperature), sum(w * part for w, part in zip((1, 1 - p), parts)), rtol=1e-11, atol=0)


def test_decoupled_distillation_stays_finite_for_large_logits():
    teacher = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]])
    student = (-teacher).requires_grad_()
    value = decoupled(teacher, student, torch.tensor([0, 0]), 1, 8)
    value.sum().backward()
    assert value.isfinite().all() and (value > 1e3).all() and student.grad.isfinite().all()


# ----------------------------------------------------------------------------------------------------- invalid arguments


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x: hint(x, x[:, :2]), r"hint must compare features of one shape, \(6, 5\), got \(6, 2\)"),
        (lambda x: attention_transfer(x, x, 0.5), "power must be >= 1"),
        (lambda x: pkt(x, x, kernel="normal", divergence="kl", diagonal=True), "kernel must be one of cosine, .*, combined, got 'normal'"),
        (lambda x: pkt(x, x, kernel="cosine", divergence="js", diagonal=True), "divergence must be one of jeffreys, .*, got 'js'"),
    ],
)
def test_invalid_arguments_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        loss(tensor(A))
