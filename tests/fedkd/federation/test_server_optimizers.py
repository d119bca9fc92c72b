"""Server optimizers: the paths of public code, the neutral values, and their ranges."""

import pytest
import torch

from fedkd.errors import ConfigError
from fedkd.federation.server_optimizers import ServerAdagrad, ServerAdam, ServerMomentum, ServerYogi
from tests.public_code import public_code

ADAPTIVE = {"lr": 0.1, "beta1": 0.9, "tau": 1e-3}

OPTIMIZERS = {
    "avgm": ServerMomentum(lr=1.0, momentum=0.9, nesterov=False),
    "flower_avgm": ServerMomentum(lr=1.0, momentum=0.9, nesterov=False),
    "avgm_nesterov": ServerMomentum(lr=1.0, momentum=0.9, nesterov=True),
    "adam": ServerAdam(**ADAPTIVE, beta2=0.99, bias_correction="none"),
    "flower_adam": ServerAdam(**ADAPTIVE, beta2=0.99, bias_correction="flower"),
    "yogi": ServerYogi(**ADAPTIVE, beta2=0.99),
    "flower_yogi": ServerYogi(**ADAPTIVE, beta2=0.99),
    "adagrad": ServerAdagrad(**ADAPTIVE),
}
"""The server optimizer that each path of public code should be."""


def path(optimizer, start, deltas):
    """The weights after each round [T, P]."""
    w, moments, rows = start, {}, []
    for number, delta in enumerate(deltas, 1):
        stepped, moments = optimizer({"w": w}, {"w": w + delta}, moments, number)
        w = stepped["w"]
        rows.append(w)
    return torch.stack(rows)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_paths_of_public_code(name):
    arrays = public_code("server")
    assert torch.allclose(path(OPTIMIZERS[name], arrays["start"], arrays["deltas"]), arrays[name], rtol=0, atol=1e-12)


def test_momentum_0_with_learning_rate_1_takes_the_mean_bit_for_bit():
    before, after = {"w": torch.randn(5)}, {"w": torch.randn(5)}
    stepped, moments = ServerMomentum(lr=1.0, momentum=0.0, nesterov=False)(before, after, {}, 1)
    assert stepped is after and moments == {}


def test_the_first_step_of_adam():
    stepped, _ = ServerAdam(lr=0.1, beta1=0.9, beta2=0.99, tau=1e-3, bias_correction="none")(
        {"w": torch.zeros(1, dtype=torch.float64)}, {"w": torch.ones(1, dtype=torch.float64)}, {}, 1
    )
    assert stepped["w"].item() == pytest.approx(0.0990099, abs=1e-7)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: ServerMomentum(lr=0.0, momentum=0.0, nesterov=False), "lr must be > 0"),
        (lambda: ServerMomentum(lr=1.0, momentum=1.0, nesterov=False), r"momentum must be in \[0, 1\)"),
        (lambda: ServerAdam(**ADAPTIVE | {"tau": 0.0}, beta2=0.9, bias_correction="none"), "tau must be > 0"),
        (lambda: ServerAdam(**ADAPTIVE, beta2=1.0, bias_correction="none"), r"beta2 must be in \[0, 1\)"),
        (lambda: ServerAdam(**ADAPTIVE, beta2=0.9, bias_correction="adam"), "bias_correction must be none or flower"),
        (lambda: ServerYogi(**ADAPTIVE | {"beta1": -0.1}, beta2=0.9), r"beta1 must be in \[0, 1\)"),
    ],
)
def test_ranges(make, rule):
    with pytest.raises(ConfigError, match=f"^{rule}"):
        make()
