"""Rules that all losses of centralized distillation follow: equations, gradients, invariances, precision, recording, and vectorizing."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from fedkd.losses.decoupled_kl import decoupled, non_target_class, target_class
from fedkd.training.step_program import check_static_shapes, simplify
from tests import oracles
from tests.fedkd.losses.distillation_cases import LABELED, LOSSES, PAIRWISE, Y, tensor

ORDER = torch.tensor([3, 0, 5, 1, 4, 2])


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_equations(name):
    loss, oracle, teacher, student = LOSSES[name]
    s = tensor(student).requires_grad_()
    value = loss(tensor(teacher), s)
    assert value.shape == (6,), "one number per example"
    value.mean().backward()
    assert value.mean().item() == pytest.approx(oracle(teacher, student), rel=1e-9, abs=0) and value.mean() > 1e-5
    slopes = oracles.gradient(lambda at: oracle(teacher, at["s"]), {"s": np.array(student)})["s"]
    np.testing.assert_allclose(s.grad.numpy(), slopes, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in LOSSES if "adaptive" not in name])
def test_the_gradient_reaches_teacher_and_student_unless_detached(name):
    """Both gradients agree with finite differences of the loss. The adaptive width has no gradient by design."""
    loss, _, teacher, student = LOSSES[name]
    assert torch.autograd.gradcheck(loss, (tensor(teacher).requires_grad_(), tensor(student).requires_grad_()))
    s = tensor(student).requires_grad_()
    t = tensor(teacher).requires_grad_()
    loss(t.detach(), s).sum().backward()
    assert t.grad is None and s.grad.norm() > 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_zero_for_equal_features(name):
    loss, _, _, student = LOSSES[name]
    s = tensor(student).requires_grad_()
    value = loss(s.detach().clone(), s)
    value.sum().backward()
    assert_close(value, torch.zeros(6, dtype=torch.float64), atol=1e-14, rtol=0)
    assert s.grad.norm() < (1e-4 if name == "cosine transfer" else 1e-13), "its minimum is shifted by the 1e-7 in its logarithms"


@pytest.mark.parametrize("name", LOSSES)
def test_permuting_the_batch_permutes_the_losses(name):
    loss, _, teacher, student = LOSSES[name]
    if name in LABELED:
        loss = {"target class": target_class, "non-target class": non_target_class, "decoupled": partial(decoupled, alpha=1, beta=8)}[name]
        whole = loss(tensor(teacher), tensor(student), torch.from_numpy(Y))
        assert_close(loss(tensor(teacher)[ORDER], tensor(student)[ORDER], torch.from_numpy(Y)[ORDER]), whole[ORDER], rtol=0, atol=0)
        return
    whole = loss(tensor(teacher), tensor(student))
    assert whole.std() > 1e-6, "examples have different losses"
    assert_close(loss(tensor(teacher)[ORDER], tensor(student)[ORDER]), whole[ORDER], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in LABELED and "without" not in name])
def test_doubling_every_example_halves_losses_of_pairs_and_keeps_the_others(name):
    """Squared differences shrink by 4 and absolute ones by 2, with twice as many neighbors. The adaptive width does not change."""
    loss, _, teacher, student = LOSSES[name]
    once, twice = (
        loss(tensor(teacher).repeat(n, *[1] * (teacher.ndim - 1)), tensor(student).repeat(n, *[1] * (student.ndim - 1))).mean()
        for n in (1, 2)
    )
    ratio = 1 if name not in PAIRWISE else 0.25 if "squared" in name else 0.5
    assert (twice / once).item() == pytest.approx(ratio, rel=1e-4 if name == "cosine transfer" else 1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(name, precision):
    """Also inside autocast."""
    loss, _, teacher, student = LOSSES[name]
    t, s = tensor(teacher).to(precision), tensor(student).to(precision)
    single = loss(t.float(), s.float())
    assert single.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(t, s), single)
    assert_close(single.double(), loss(t.double(), s.double()), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_recorded_loss_gives_the_same_bits_for_other_inputs(name):
    """Forward and backward, so no operation depended on a value."""
    loss, _, teacher, student = LOSSES[name]

    def step(t, s):
        value = loss(t, s := s.detach().requires_grad_())
        return value.detach(), *torch.autograd.grad(value.mean(), s)

    graph = simplify(make_fx(step)(tensor(teacher), tensor(student)))
    check_static_shapes(graph)
    other_inputs = -0.7 * tensor(teacher).flip(0), tensor(student).flip(0) + 1
    assert all(torch.equal(recorded, direct) for recorded, direct in zip(graph(*other_inputs), step(*other_inputs)))


@pytest.mark.parametrize("name", LOSSES)
def test_vectorized_losses_equal_single_losses(name):
    loss, _, teacher, student = LOSSES[name]
    students = torch.stack([tensor(student), 1.5 * tensor(student).flip(0)])
    together = torch.vmap(loss, in_dims=(None, 0))(tensor(teacher), students)
    assert_close(together, torch.stack([loss(tensor(teacher), s) for s in students]), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in LABELED])
@pytest.mark.parametrize("level", [0.0, 1.5], ids=["zero", "equal"])
def test_losses_and_gradients_of_zero_and_of_equal_examples_are_finite(name, level):
    """First two examples are equal (or zero), then all."""
    loss, _, teacher, student = LOSSES[name]
    for rows in (2, 6):
        t, s = tensor(teacher).float(), tensor(student).float()
        s[:rows], t[1:rows] = level, level
        value = loss(t, s.requires_grad_())
        value.sum().backward()
        assert value.isfinite().all() and s.grad.isfinite().all() and s.grad.abs().max() < 1e4
