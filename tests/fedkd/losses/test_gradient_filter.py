"""The filter of gradients: masks, kept gradients, and filters inside networks and recorded steps."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from fedkd.losses.gradient_filter import FILTERS, filter_gradient, gradient_mask
from fedkd.losses.kl import kl_divergence
from fedkd.training.step_program import simplify
from tests import distillation_oracles
from tests.fedkd.losses.distillation_cases import STUDENT_LOGITS, TEACHER_LOGITS, A, B, Y, assert_recorded_and_mapped, tensor


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("name", FILTERS)
def test_masks_equal_their_definitions(name, temperature):
    found = gradient_mask(name, *(torch.from_numpy(array) for array in (A, B, Y)), temperature, 0.1)
    expected = distillation_oracles.filter_mask(name, A, B, Y, temperature, 0.1)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.shape == (6, 5) and found.any() and found.all() == (name == "none")


@pytest.mark.parametrize("name", FILTERS)
def test_a_filtered_loss_keeps_its_value_and_the_selected_gradient(name):
    """The gradient of T^2 KL is T (p_s - p_t)."""
    t, s, y = tensor(A), tensor(B).requires_grad_(), torch.from_numpy(Y)
    kept = gradient_mask(name, t, s, y, 2.0, 0.1)
    filtered = filter_gradient(s, kept)
    assert torch.equal(filtered, s) and torch.equal(kl_divergence(t, filtered, 2.0), kl_divergence(t, s, 2.0))
    (slope,) = torch.autograd.grad(kl_divergence(t, filtered, 2.0).mean(), s)
    assert_close(slope, kept * 2.0 * ((s / 2).softmax(-1) - (t / 2).softmax(-1)) / 6, atol=1e-14, rtol=0)
    assert (slope[~kept] == 0).all()


def test_the_filter_of_an_example():
    """The gradient is kept where the teacher is more confident of the label, and removed otherwise and at equality."""
    student, teacher, y = tensor(STUDENT_LOGITS).requires_grad_(), tensor(TEACHER_LOGITS), torch.tensor([0])

    def slope(teacher, student):
        logits = student.detach().requires_grad_()
        return torch.autograd.grad(
            kl_divergence(teacher, filter_gradient(logits, gradient_mask("sample_conf", teacher, logits, y))).mean(), logits
        )[0]

    assert_close(slope(teacher, student), tensor([[-0.0561582, -0.0206595, 0.0768177]]), atol=5e-8, rtol=0)
    assert (slope(student, teacher) == 0).all()
    assert not gradient_mask("sample_conf", teacher, teacher, y).any() and not gradient_mask("target_only", teacher, teacher, y)[0, 0]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_removed_gradients_may_be_infinite(value):
    logits, kept = torch.zeros(1, 2, requires_grad=True), torch.tensor([[True, False]])
    slopes = torch.autograd.grad(filter_gradient(logits, kept), logits, torch.tensor([[1.0, value]]))[0]
    assert slopes.tolist() == [[1, 0]]


def test_a_filter_works_in_functional_calls_and_recorded_steps():
    class Filtering(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, 5, dtype=torch.float64)

        def forward(self, x, t, y):
            logits = self.head(x)
            return filter_gradient(logits, gradient_mask("target_only", t, logits, y))

    def step(weights, x, t, y):
        weights = {key: value.detach().requires_grad_() for key, value in weights.items()}
        loss = kl_divergence(t, functional_call(net, weights, (x, t, y))).sum()
        return loss.detach(), *torch.autograd.grad(loss, list(weights.values()))

    net, y = Filtering(), torch.from_numpy(Y)
    weights = {"head.weight": tensor(B[:5]), "head.bias": tensor(A[0])}
    graph = simplify(make_fx(step)(weights, tensor(A), tensor(B), y))
    recorded, direct = graph(weights, tensor(A).flip(0), tensor(B), y), step(weights, tensor(A).flip(0), tensor(B), y)
    assert all(torch.equal(one, other) for one, other in zip(recorded, direct))
    logits = tensor(A).flip(0) @ weights["head.weight"].T + weights["head.bias"]
    kept = gradient_mask("target_only", tensor(B), logits, y)
    assert_close(direct[2], (kept * (logits.softmax(-1) - tensor(B).softmax(-1))).sum(0))
    assert not kept.all()


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_can_be_recorded_and_vectorized(name):
    assert_recorded_and_mapped(filter_by(name), tensor(B))


def filter_by(name):
    return lambda logits: filter_gradient(logits, gradient_mask(name, tensor(A), logits, torch.from_numpy(Y), 2.0, 0.1))


def test_an_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="filter must be one of none, .*, got 'all'"):
        gradient_mask("all", tensor(A), tensor(A), torch.from_numpy(Y))
