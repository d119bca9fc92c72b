"""FedDF: its loss, its server against a plain loop, convergence, and early stopping."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from fedkd.distillation.logit_distillation import compute_logits, distill_logits
from fedkd.federation.aggregation import average
from fedkd.losses.kl import kl_divergence
from fedkd.seed import Seed
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from tests import oracles
from tests.small_runs import same_tensors, small_simulation, strategy_overrides
from tests.strategies.server_tools import DOUBLE, check_close, members, network_with, perceptron_models, trained_clients
from tests.strategies.strategy_tools import to_numpy


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_loss(kind):
    simulation, models, _ = perceptron_models("strategy=feddf", *strategy_overrides("feddf"), f"strategy.average={kind}", number=3)
    x = simulation.client_data.public_data.images(torch.arange(7), DOUBLE)
    teacher = simulation.strategy.teacher(
        simulation.federation().server, members(simulation, models), simulation.client_data.public_data.subset(torch.arange(7))
    )
    p = oracles.ensemble(np.stack([oracles.mlp(to_numpy(one), x.numpy()) for one in models]), kind)
    np.testing.assert_allclose(teacher.softmax(-1).numpy(), p, rtol=1e-12)
    student = network_with(simulation, simulation.initial)
    value, _ = simulation.strategy.distillation(FunctionalModel(student), Batch(x, torch.zeros(7), {"teacher": teacher}), {}, {})
    at = to_numpy(dict(student.named_parameters()))

    def equation(head) -> float:
        return oracles.divergence(p, oracles.mlp({**at, **head}, x.numpy())).mean()

    heads = {key: at[key] for key in ("head.weight", "head.bias")}
    assert value.item() == pytest.approx(equation(heads), rel=1e-12) and value.item() > 0.01
    for name, slope in oracles.gradient(equation, heads).items():
        (actual,) = torch.autograd.grad(value, student.get_parameter(name), retain_graph=True)
        np.testing.assert_allclose(actual.numpy(), slope, atol=1e-8)


def test_averages_of_logits_and_probabilities_differ():
    """Two teachers predict different classes. The mean of logits and the mean of probabilities weight them differently."""
    logits = np.array([[[10.0, 0, 0]], [[0, 4.0, 0]]])
    np.testing.assert_allclose(oracles.ensemble(logits, "logits"), oracles.softmax(np.array([[5.0, 2, 0]])))
    assert oracles.ensemble(logits, "probabilities")[0, 0] < 0.6 < oracles.ensemble(logits, "logits")[0, 0]


def test_probability_of_zero_is_finite():
    simulation, _ = small_simulation(
        "strategy=feddf", *strategy_overrides("feddf"), "model=mlp", "model.widths=[4]", "strategy.average=probabilities"
    )
    sure = {key: torch.zeros_like(value) for key, value in simulation.initial.items()} | {"head.bias": torch.tensor([1e4] + [0.0] * 9)}
    teacher = simulation.strategy.teacher(
        simulation.federation().server, members(simulation, [sure, sure]), simulation.client_data.public_data.subset(torch.arange(2))
    )
    assert torch.isfinite(teacher).all() and torch.isfinite(kl_divergence(teacher, torch.zeros(2, 10))).all()
    assert kl_divergence(teacher, torch.zeros(2, 10)).tolist() == pytest.approx([np.log(10)] * 2, rel=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_server_equals_plain_loop(kind, schedule):
    """The student starts from the clients' mean, weighted by examples. Teachers run in eval mode, the student in train mode."""
    options_ = (f"strategy.average={kind}", f"strategy.schedule={schedule}", "strategy.steps=5", "strategy.every=2", "precision=float64")
    simulation, server, state, updates = trained_clients("feddf", *options_)
    after, metrics = simulation.strategy.aggregate(server, state, updates, 1)
    sizes = [len(simulation.partition.train[k]) for k in range(3)]
    mean = average([u.state["model"] for u in updates], [size / sum(sizes) for size in sizes])
    assert same_tensors(after["average"], mean)
    student, teachers = network_with(simulation, mean), [network_with(simulation, u.state["model"]).eval() for u in updates]
    adam = torch.optim.Adam(student.parameters(), lr=1e-3, eps=1e-3)
    where = torch.randint(len(simulation.client_data.public_data), (5, 16), generator=(server.seed / "public").torch())
    losses = []
    for step, index in enumerate(where):
        x = simulation.client_data.public_data.images(index, DOUBLE)
        with torch.no_grad():
            logits = torch.stack([teacher(x).logits for teacher in teachers])
            p = logits.mean(0).softmax(-1) if kind == "logits" else logits.softmax(-1).mean(0)
        for group in adam.param_groups:
            group["lr"] = 1e-3 * (0.5 * (1 + np.cos(np.pi * step / 5)) if schedule == "cosine" else 1)
        adam.zero_grad()
        losses.append((p * (p.log() - student(x).logits.log_softmax(-1))).sum(-1).mean())
        losses[-1].backward()
        adam.step()
    check_close(after["model"], student.state_dict())
    assert metrics["distillation_loss"].item() == pytest.approx(sum(losses).item() / 5, rel=1e-9) and metrics["distillation_steps"] == 5


def mean_divergence(simulation, tensors, teacher, images) -> float:
    """The mean divergence of a model in eval mode from a teacher's logits."""
    return kl_divergence(teacher, compute_logits(simulation.model, tensors, images, 500, simulation.dtype)).mean().item()


def test_student_approaches_the_ensemble():
    simulation, server, state, updates = trained_clients(
        "feddf", "strategy.steps=150", "local_steps=20", "optimizer.lr=0.1", "partition.alpha=0.1"
    )
    teacher = simulation.strategy.teacher(server, simulation.strategy.teachers(server, updates), simulation.client_data.public_data)
    after, _ = simulation.strategy.aggregate(server, state, updates, 1)
    before, now = (mean_divergence(simulation, after[part], teacher, simulation.client_data.public_data) for part in ("average", "model"))
    assert now < 0.5 * before, (before, now)


def test_student_of_one_client_converges():
    """The mean of one client is that client, so its loss is 0. From other weights the divergence decreases towards 0."""
    simulation, server, state, updates = trained_clients("feddf", "model=mlp", "strategy.steps=300", "local_steps=20", "optimizer.lr=0.1")
    _, metrics = simulation.strategy.aggregate(server, state, updates[:1], 1)
    assert metrics["distillation_loss"].item() < 1e-6
    teacher = simulation.strategy.teacher(server, simulation.strategy.teachers(server, updates[:1]), simulation.client_data.public_data)
    where = torch.randint(len(simulation.client_data.public_data), (300, 32), generator=Seed(1).torch())
    piece = lambda steps: Batches(
        simulation.client_data.public_data.y[where[steps]],
        where[steps],
        simulation.client_data.public_data,
        simulation.dtype,
        {"teacher": teacher[where[steps]]},
    )
    adam, values = (
        partial(torch.optim.Adam, lr=3e-3),
        [mean_divergence(simulation, simulation.initial, teacher, simulation.client_data.public_data)],
    )
    for steps in (30, 100, 300):
        done = distill_logits(simulation.model, simulation.initial, piece, steps, simulation.strategy.distillation, adam)
        values.append(mean_divergence(simulation, done.tensors, teacher, simulation.client_data.public_data))
    assert values == sorted(values, reverse=True) and values[-1] < 0.05 * values[0], values


def test_validation_uses_held_out_examples_only():
    simulation, server, state, updates = trained_clients(
        "feddf", "validation_fraction=0.2", "strategy.steps=6", "strategy.every=2", "strategy.patience=2"
    )
    images, labels = (
        simulation.client_data.validation.images(torch.arange(len(simulation.client_data.validation))),
        simulation.client_data.validation.y,
    )
    tensors = updates[0].state["model"]
    right = network_with(simulation, tensors).eval()(images).logits.argmax(-1) == labels
    assert simulation.strategy.validation_accuracy(server, tensors) == pytest.approx(right.double().mean().item())
    parts = [index for shards in (simulation.partition.train, simulation.partition.test) for index in shards]
    assert simulation.client_data.validation.rows.numel() > 100 and simulation.client_data.local_test_pool is simulation.global_test
    validation = set(simulation.client_data.validation.rows.tolist())
    assert not validation & {int(i) for index in parts[:6] for i in index} and not validation & set(
        simulation.client_data.public_data.rows.tolist()
    )
    best = simulation.strategy.validation_accuracy(server, simulation.strategy.aggregate(server, state, updates, 1)[0]["model"])
    assert best >= simulation.strategy.validation_accuracy(
        server, average([u.state["model"] for u in updates], simulation.strategy.aggregation_weights(updates))
    )
    where_judged, _ = small_simulation(
        "strategy=feddf", *strategy_overrides("feddf"), "validation_fraction=0.2", "evaluation.split=validation"
    )
    assert where_judged.federation().server.validation is None, "the evaluation set is not used for early stopping"


def test_early_stopping_of_a_harmful_distillation():
    """With a learning rate that is too large the start is kept, and training stops after the patience."""
    simulation, server, state, updates = trained_clients(
        "feddf", "validation_fraction=0.2", "strategy.steps=20", "strategy.every=2", "strategy.patience=4", "strategy.optimizer.lr=1.0",
        "local_steps=30", "optimizer.lr=0.1", "partition.alpha=1000",
    )  # fmt: skip
    after, metrics = simulation.strategy.aggregate(server, state, updates, 1)
    assert metrics["distillation_steps"] == 4 and same_tensors(after["model"], after["average"])


def test_public_data_smaller_than_a_batch():
    simulation, server, state, updates = trained_clients("feddf")
    few = replace(server, public_data=simulation.client_data.public_data.subset(torch.arange(3)))
    after, _ = simulation.strategy.aggregate(few, state, updates, 1)
    assert not same_tensors(after["model"], after["average"])


@pytest.mark.parametrize("name", ["feddf", "feddfusion"])
def test_public_labels_are_not_used(name):
    simulation, server, state, updates = trained_clients(name)
    other = replace(
        server,
        public_data=replace(
            simulation.client_data.public_data, y=torch.randint(10, (len(simulation.client_data.public_data),), generator=Seed(3).torch())
        ),
    )
    results = [simulation.strategy.aggregate(one, state, updates, 1) for one in (server, other)]
    assert same_tensors(results[0][0], results[1][0]) and same_tensors(results[0][1], results[1][1])
