"""The simplification of recorded graphs removes operations without effect and nothing else."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from fedkd.training.functional_model import FunctionalModel, snapshot
from fedkd.training.step_program import simplify
from tests.small_runs import same_tensors


class Idle(nn.Module):
    """A network with a BatchNorm whose output is not used."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = norm, nn.Linear(6, 2)

    def forward(self, x):
        self.norm(x)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)])
def test_simplify_keeps_the_update_of_a_batchnorm(norm):
    """Even if its output is not used."""
    module, shape = Idle(norm).train(), (5, 3, 2) if isinstance(norm, nn.BatchNorm1d) else (5, 3, 2, 1)
    names = list(snapshot(module))

    def function(x, *tensors):
        return [FunctionalModel(module, dict(zip(names, tensors)))(x)]

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 3
    graph = simplify(make_fx(function)(x, *snapshot(module).values()))
    direct, replayed = snapshot(module), snapshot(module)
    for _ in range(2):
        assert torch.equal(function(x, *direct.values())[0], graph(x, *replayed.values())[0])
    assert same_tensors(direct, replayed) and replayed["norm.num_batches_tracked"] == 2 and (replayed["norm.running_mean"] > 0.2).all()


def test_simplify_removes_unused_results_and_views_without_effect():
    def function(x):
        x.sin().cos()
        x.sort()[0].exp()
        return [x.detach().view(2, 3).expand(2, 3) + 1, x.t().permute(0, 1), x.view(3, 2)]

    graph = simplify(make_fx(function)(torch.zeros(2, 3)))
    assert [node.target.__name__.split(".")[0] for node in graph.graph.nodes if node.op == "call_function"] == ["add", "t", "view"]
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert all(map(torch.equal, graph(x), function(x)))


def test_simplify_computes_constants_once_unless_they_are_written():
    def function(x):
        counted, shifted = torch.zeros(2), torch.tensor([1.0, 2.0])
        counted.unsqueeze(0).add_(x)
        shifted.mul_(3)
        return [(x == torch.arange(2)).sum(), x * torch.tensor([[4.0, 5.0]])[:, None], counted, shifted]

    graph = simplify(make_fx(function)(torch.zeros(1, 2)))
    called = [node.target.__name__.split(".")[0] for node in graph.graph.nodes if node.op == "call_function"]
    assert called == ["zeros", "lift_fresh_copy", "unsqueeze", "add_", "mul_", "eq", "sum", "mul"]
    x = torch.ones(1, 2)
    assert all(map(torch.equal, [one for _ in range(2) for one in graph(x)], [one for _ in range(2) for one in function(x)]))


def test_simplify_removes_chains_of_views():
    def function(x):
        return [x.unflatten(0, (2, 3)).flatten(0, 1) * 2, x.unsqueeze(0).squeeze(0).t().t() + 1, x.t().contiguous().t() - 1]

    graph = simplify(make_fx(function)(torch.zeros(6, 2)))
    called = [node.target.__name__.split(".")[0] for node in graph.graph.nodes if node.op == "call_function"]
    assert called == ["mul", "add", "t", "clone", "t", "sub"]
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    assert all(map(torch.equal, graph(x), function(x)))
