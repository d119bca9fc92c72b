"""DENSE: its distillation, and its server against a plain loop."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fedkd.federation.aggregation import average
from fedkd.seed import Seed
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Examples
from tests import oracles
from tests.small_runs import same_tensors, small_simulation, strategy_overrides
from tests.strategies.server_tools import DOUBLE, check_close, network_with, perceptron_models, trained_clients
from tests.strategies.strategy_tools import to_numpy


@pytest.mark.parametrize("temperature", [20.0, 1.0])
def test_distillation_loss(temperature):
    simulation, (teacher, _), random = perceptron_models(
        "strategy=dense", *strategy_overrides("dense"), f"strategy.temperature={temperature}"
    )
    x, student = random.random((6, 1, 8, 8)), network_with(simulation, simulation.initial)
    logits = oracles.mlp(to_numpy(teacher), x)
    batch = Batch(torch.from_numpy(x), torch.zeros(6), {"teacher": torch.from_numpy(logits)})
    value, _ = simulation.strategy.distillation(FunctionalModel(student), batch, {}, {})
    at = to_numpy(dict(student.named_parameters()))
    equation = lambda head: oracles.kl(logits, oracles.mlp({**at, **head}, x), temperature).mean()
    heads = {key: at[key] for key in ("head.weight", "head.bias")}
    assert value.item() == pytest.approx(equation(heads), rel=1e-10) and value.item() > 0.01
    for name, slope in oracles.gradient(equation, heads).items():
        (actual,) = torch.autograd.grad(value, student.get_parameter(name), retain_graph=True)
        np.testing.assert_allclose(actual.numpy(), slope, atol=1e-6)


def plain_synthesis(simulation, seed, models, student):
    """The images of one batch, step by step: a new generator with noise, sorted labels, all networks in eval mode."""
    strategy, task = simulation.strategy, simulation.task
    with (seed / "generator").globally():
        generator = strategy.generator(task).double().train()
    noise = torch.randn(strategy.batch_size, generator.noise_size, generator=(seed / "noise").torch()).double().requires_grad_()
    y = torch.randint(10, (strategy.batch_size,), generator=(seed / "labels").torch()).sort().values
    adam = torch.optim.Adam([*generator.parameters(), noise], lr=1e-3, betas=(0.5, 0.999), eps=1e-3)
    teachers, student = [network_with(simulation, one).eval() for one in models], network_with(simulation, student).eval()
    for _ in range(strategy.generator_steps):
        layer_inputs = []
        keep = lambda layer, inputs, seen=layer_inputs: seen.append((layer, inputs[0]))
        norms = [layer for teacher in teachers for layer in teacher.modules() if isinstance(layer, nn.BatchNorm2d)]
        hooks = [layer.register_forward_pre_hook(keep) for layer in norms]
        adam.zero_grad()
        x = generator(noise, y)
        z, s = torch.stack([teacher(x).logits for teacher in teachers]).mean(0), student(x).logits
        for hook in hooks:
            hook.remove()
        far = sum(
            (value.var((0, 2, 3), unbiased=False) - layer.running_var).norm() + (value.mean((0, 2, 3)) - layer.running_mean).norm()
            for layer, value in layer_inputs
        )
        divergence = F.kl_div(s.log_softmax(-1), z.softmax(-1), reduction="none").sum(-1)
        (far + F.cross_entropy(z, y) - (divergence * (z.argmax(-1) != s.argmax(-1))).mean()).backward()
        adam.step()
    with torch.no_grad():
        return generator(noise, y), y


def test_server_equals_plain_loop():
    """Each epoch makes images against the current student, then trains it on all images so far."""
    simulation, server, state, updates = trained_clients(
        "dense", "strategy.epochs=3", "precision=float64", "local_steps=15", "optimizer.lr=0.1"
    )
    after, metrics = simulation.strategy.aggregate(server, state, updates, 1)
    models, pool, losses = [u.state["model"] for u in updates], torch.empty(0, 1, 8, 8, dtype=DOUBLE), []
    student = network_with(simulation, average(models, simulation.strategy.aggregation_weights(updates)))
    sgd, teachers = torch.optim.SGD(student.parameters(), lr=0.005, momentum=0.9), [network_with(simulation, one).eval() for one in models]
    for epoch in range(3):
        seed = server.seed / "epoch" / epoch
        pool = torch.cat([pool, plain_synthesis(simulation, seed, models, student.state_dict())[0]])
        assert len(pool) == (epoch + 1) * simulation.strategy.batch_size
        order = torch.randperm(len(pool), generator=(seed / "order" / 0).torch())
        for index in order.split(simulation.strategy.batch_size):
            with torch.no_grad():
                z = torch.stack([teacher(pool[index]).logits for teacher in teachers]).mean(0)
            sgd.zero_grad()
            q = (student(pool[index]).logits / 20).log_softmax(-1)
            losses.append((epoch, 400 * F.kl_div(q, (z / 20).softmax(-1), reduction="batchmean")))
            losses[-1][1].backward()
            sgd.step()
    check_close(after["model"], student.state_dict())
    epochs = [np.mean([loss.item() for e, loss in losses if e == epoch]) for epoch in range(3)]
    assert metrics["distillation_loss"].item() == pytest.approx(np.mean(epochs), rel=1e-9)
    assert set(after) == {"model", "average", "made", "member-0", "member-1", "member-2"}
    assert_close(after["made"]["images"], pool[-simulation.strategy.batch_size :], rtol=1e-9, atol=1e-11)
    labels = torch.randint(10, (simulation.strategy.batch_size,), generator=(server.seed / "epoch" / 2 / "labels").torch()).sort().values
    assert torch.equal(after["made"]["y"], labels)
    assert all(same_tensors(after[f"member-{u.client}"], u.state["model"]) for u in updates)


@pytest.mark.parametrize(("steps", "sizes"), [(None, [1, 2, 3]), (5, [5, 5, 5])])
def test_batches_of_an_epoch(steps, sizes):
    simulation, _ = small_simulation(
        "strategy=dense", *strategy_overrides("dense"), f"strategy.student_steps={'null' if steps is None else steps}"
    )
    for epoch, size in enumerate(sizes):
        number = 8 * (epoch + 1)
        images = Examples(torch.rand(number, 1, 8, 8), torch.zeros(number, dtype=torch.int64), 1.0, (0.0,), (1.0,))
        batches = simulation.strategy.batches_of(images, torch.arange(number * 10.0).view(number, 10), Seed(0), torch.float32)
        assert batches.index.shape == (size, 8) and torch.equal(batches.drawn["teacher"][..., 0], batches.index * 10.0)
        assert batches.index.flatten()[:number].sort().values.tolist() == list(range(number))[: size * 8]


@pytest.mark.parametrize("student", ["average", "fresh"])
def test_start_of_the_student(student):
    simulation, server, state, updates = trained_clients("dense", f"strategy.student={student}", "strategy.epochs=0")
    after, metrics = simulation.strategy.aggregate(server, state, updates, 1)
    assert same_tensors(after["model"], after["average"] if student == "average" else simulation.initial) and metrics == {}


def test_without_batchnorm():
    simulation, server, state, updates = trained_clients("dense", "model=mlp")
    after, metrics = simulation.strategy.aggregate(server, state, updates, 1)
    assert metrics["synthesis_bn"] == 0 and metrics["synthesis_oh"] > 0 and not same_tensors(after["model"], after["average"])
