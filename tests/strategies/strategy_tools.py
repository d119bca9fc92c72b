"""Tools for tests of strategies: small networks that the oracles compute too, and comparisons."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from tests import oracles
from tests.small_runs import small_simulation

SWITCHES = {"batchnorm": "local", "aggregation": "examples", "lr_schedule": "last_participation", "lr_decay": 0.99, "shared_layers": "all"}


def to_numpy(tensors):
    return {name: value.detach().numpy() for name, value in tensors.items()}


def gradients(loss, at) -> dict[str, torch.Tensor]:
    """The gradients of a loss by the parameters of a network, by name."""
    return dict(zip((name for name, _ in at.named_parameters()), torch.autograd.grad(loss, list(at.parameters()))))


def small_perceptron(width: int = 8, bias: float = 0.0):
    """A network that :func:`tests.oracles.mlp` computes too, six examples, and the tensors of two networks near it."""
    simulation, _ = small_simulation("model=mlp", f"model.widths=[{width}]", "precision=float64")
    model, random = deepcopy(simulation.model), np.random.default_rng(0)
    model.stages[0][1].bias.data += bias  # with a positive bias units are active
    x, y = random.random((6, 1, 2, 32)), np.array([0, 1, 2, 2, 3, 9])
    others = [{k: v + torch.from_numpy(random.standard_normal(v.shape)) for k, v in model.state_dict().items()} for _ in range(2)]
    return model, x, y, others


def perceptron_embedding(weights, x):
    """The input of the head of :func:`small_perceptron`."""
    return np.maximum(oracles.linear(weights, "stages.0.1", x.reshape(len(x), -1)), 0)


def check_equation(value, model, equation, *names: str) -> None:
    """Check that a loss has the value of an equation of the weights, and its gradient by the weights ``names``."""
    at, actual = to_numpy(dict(model.named_parameters())), gradients(value, model)
    assert value.item() == pytest.approx(equation(at), rel=1e-12)
    slopes = oracles.gradient(lambda part: equation({**at, **part}), {name: at[name] for name in names})
    for name, slope in slopes.items():
        np.testing.assert_allclose(actual[name].numpy(), slope, atol=1e-6)
