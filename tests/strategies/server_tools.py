"""Tools for tests of server-side distillation: trained clients, small networks, and comparisons."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.testing import assert_close

from fedkd.models.ensemble import Member
from fedkd.types import Output
from tests.small_runs import small_simulation, strategy_overrides

DOUBLE = torch.float64


def clone(tree):
    return {key: clone(value) if isinstance(value, dict) else value.clone() for key, value in tree.items()}


def perceptron_models(*overrides: str, number: int = 2, width: int = 8):
    """A small simulation whose network :func:`tests.oracles.mlp` computes too, and the tensors of ``number`` networks near it."""
    simulation, _ = small_simulation("model=mlp", f"model.widths=[{width}]", "precision=float64", *overrides)
    random = np.random.default_rng(0)
    models = [
        {k: v + 0.3 * torch.from_numpy(random.standard_normal(v.shape)) for k, v in simulation.initial.items()} for _ in range(number)
    ]
    return simulation, models, random


def trained_clients(name: str, *overrides: str):
    """A simulation, its server in round 1, the state before, and the updates of three trained clients."""
    simulation, _ = small_simulation(f"strategy={name}", *strategy_overrides(name), *overrides)
    server = simulation.federation().server
    state = simulation.strategy.init_server(server)
    broadcast = {part: state[part] for part in simulation.strategy.broadcast_parts}
    updates = [simulation.strategy.train(simulation.client(k, 1), broadcast, None, 1)[0] for k in range(3)]
    return simulation, replace(server, seed=server.seed / "round" / 1 / "server"), state, updates


def network_with(simulation, tensors) -> nn.Module:
    """A copy of the server's network with ``tensors``, in train mode."""
    model = deepcopy(simulation.model)
    model.load_state_dict(tensors)
    return model.train()


def members(simulation, models) -> list[Member]:
    """Models of the server's network as teachers."""
    return [Member(simulation.model, tensors) for tensors in models]


def check_close(actual, expected) -> None:
    """Check that tensors are equal up to rounding in double precision."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(actual[key], value, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}")


class LinearClient(nn.Module):
    """``logits = flatten(image) @ weight + bias``: a client of the public code's inputs.

    Args:
        arrays: ``student_weight`` and ``student_bias``, whose shapes the parameters have.
    """

    def __init__(self, arrays) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.zeros_like(arrays[name])) for name in ("student_weight", "student_bias"))

    def forward(self, x: torch.Tensor) -> Output:
        return Output(x.flatten(1) @ self.weight + self.bias, x.flatten(1))


class FixedImages(nn.Module):
    """A generator whose parameters are the images, for gradients by the images."""

    noise_size = 3

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(x)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.x
