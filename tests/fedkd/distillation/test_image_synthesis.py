"""Image synthesis: its loss against the equation, and what it leaves unchanged."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from fedkd.distillation.image_synthesis import Synthesis, ensemble_parts
from fedkd.losses.batchnorm_statistics import statistics_distance
from fedkd.models.ensemble import Member
from fedkd.seed import Seed
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Task
from tests import oracles
from tests.small_runs import same_tensors, small_simulation, strategy_overrides
from tests.strategies.server_tools import FixedImages, clone, trained_clients
from tests.strategies.strategy_tools import to_numpy


def test_statistics_distance():
    """Channel 0 has the values 1, 3, 5, 7 (mean 4, variance 5), channel 1 zeros. The statistics are means (1, 4), variances (5, 12)."""
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]], [[[5.0, 7.0]], [[0.0, 0.0]]]])
    actual = statistics_distance(x, torch.tensor([1.0, 4.0]), torch.tensor([5.0, 12.0]))
    assert actual.item() == pytest.approx(12 + 5)
    flat = torch.tensor([[1.0], [3.0], [5.0], [7.0]])
    assert statistics_distance(flat, torch.tensor([4.0]), torch.tensor([5.0])) == 0, "the variance divides by n"


@pytest.fixture(scope="module")
def batchnorm_models():
    """A simulation, three small networks with different BatchNorm statistics and weights, images, and labels."""
    simulation, _ = small_simulation(
        "strategy=dense", *strategy_overrides("dense"), "model.widths=[2,3]", "model.embedding_size=4", "precision=float64"
    )
    random, models = np.random.default_rng(0), []
    for _ in range(3):
        noise = {k: torch.from_numpy(np.asarray(random.standard_normal(v.shape))) for k, v in simulation.initial.items()}
        moved = {k: v + 0.4 * noise[k] if v.is_floating_point() else v for k, v in simulation.initial.items()}
        models.append({k: v.abs() + 0.2 if k.endswith("var") else v for k, v in moved.items()})
    return simulation, models, random.standard_normal((5, 1, 8, 8)), np.array([0, 3, 3, 7, 9])


def synthesis_loss(simulation, models, x, y, **weights):
    """The loss of images for two teachers and a student, its terms, and the images as parameters."""
    synthesis = replace(simulation.strategy.synthesis, **weights)
    module = FixedImages(torch.from_numpy(x))
    network = simulation.model
    broadcast = {**ensemble_parts([Member(network, one) for one in models[:2]]), "student": models[2]}
    batch, networks = Batch(None, torch.from_numpy(y)), (network, network)
    value, terms = synthesis.loss(FunctionalModel(module), batch, broadcast, {}, networks=networks, student_network=network)
    return value, {name: term.item() for name, term in terms.items()}, module.x


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, 2.0, 5.0)])
def test_synthesis_loss(batchnorm_models, weights):
    """The value, all terms, and the gradient by the images."""
    simulation, models, x, y = batchnorm_models
    bn, oh, adv = weights
    value, terms, leaf = synthesis_loss(simulation, models, x, y, bn=bn, oh=oh, adv=adv)
    arrays = [to_numpy(one) for one in models]
    equation = lambda at: oracles.dense_synthesis(at["x"], y, arrays[:2], arrays[2], bn, oh, adv)
    expected, expected_terms = equation({"x": x})
    assert value.item() == pytest.approx(expected, rel=1e-10)
    assert terms == pytest.approx(expected_terms, rel=1e-10) and terms["bn"] > 0.1 and terms["adv"] < -1e-3
    (actual,) = torch.autograd.grad(value, leaf)
    slope = oracles.gradient(lambda at: equation(at)[0], {"x": x})["x"]
    np.testing.assert_allclose(actual.numpy(), slope, atol=1e-6)


def test_adversarial_term_counts_disagreements(batchnorm_models):
    """Images on which ensemble and student agree have no adversarial term."""
    simulation, (one, *_), *_ = batchnorm_models
    random = np.random.default_rng(1)
    x, y = random.standard_normal((40, 1, 8, 8)), np.arange(40) % 10
    moved = {
        key: value + 0.3 * torch.from_numpy(random.standard_normal(value.shape)) if "head" in key else value for key, value in one.items()
    }
    near = [one, one, moved]
    mean, client_state = (oracles.fedgen_cnn(to_numpy(weights), x)[0].argmax(-1) for weights in (one, moved))
    unlike = mean != client_state
    assert 5 < unlike.sum() < 35
    whole, some, none = (synthesis_loss(simulation, near, x[rows], y[rows])[1]["adv"] for rows in (unlike | True, unlike, ~unlike))
    assert none == 0 and whole == pytest.approx(some * unlike.mean()) and whole < 0


def test_no_adversarial_term_for_equal_networks(batchnorm_models):
    simulation, models, x, y = batchnorm_models
    _, terms, _ = synthesis_loss(simulation, [models[0], models[0], models[0]], x, y)
    assert terms["adv"] == 0


def test_synthesis_does_not_change_its_arguments(batchnorm_models):
    simulation, models, *_ = batchnorm_models
    before = clone({str(k): one for k, one in enumerate(models)})
    *teachers, student = (Member(simulation.model, one) for one in models)
    simulation.strategy.synthesis(teachers, student, simulation.task, Seed(0))
    assert same_tensors({str(k): one for k, one in enumerate(models)}, before)


def test_images_depend_on_their_seed_only():
    """They depend neither on earlier images nor on the global generator of PyTorch."""
    simulation, _ = small_simulation("strategy=dense", *strategy_overrides("dense"), "strategy.generator_steps=5")
    student = Member(simulation.model, simulation.initial)
    moved = Member(simulation.model, {k: v + 0.1 if v.is_floating_point() else v for k, v in simulation.initial.items()})
    make = lambda seed: simulation.strategy.synthesis([moved, student], student, simulation.task, seed)[0]
    first, state = make(Seed(0) / "epoch" / 1), torch.get_rng_state()
    others = [make(Seed(0) / "epoch" / epoch) for epoch in range(2, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(make(Seed(0) / "epoch" / 1), first) and not any(torch.equal(other, first) for other in others)


def test_labels_are_sorted_and_cover_all_classes(monkeypatch):
    simulation, _ = small_simulation("strategy=dense", *strategy_overrides("dense"), "strategy.batch_size=64", "strategy.generator_steps=1")
    seen, loss = [], Synthesis.loss
    monkeypatch.setattr(
        Synthesis, "loss", lambda self, model, batch, *rest, **more: (seen.append(batch.y), loss(self, model, batch, *rest, **more))[1]
    )
    model = Member(simulation.model, simulation.initial)
    simulation.strategy.synthesis([model], model, simulation.task, Seed(0))
    assert torch.equal(seen[0], seen[0].sort().values) and seen[0].unique().tolist() == list(range(10))


def test_more_steps_lower_the_losses():
    """The cross-entropy with the labels and the distance of the statistics decrease."""
    simulation, server, _, updates = trained_clients(
        "dense", "strategy.batch_size=32", "local_steps=40", "optimizer.lr=0.1", "partition.alpha=1000"
    )
    models, student = [Member(simulation.model, u.state["model"]) for u in updates], Member(simulation.model, simulation.initial)
    terms = []
    for steps in (1, 30):
        synthesis = replace(simulation.strategy.synthesis, steps=steps, optimizer=partial(torch.optim.Adam, lr=0.02))
        terms.append(synthesis(models, student, simulation.task, server.seed)[1])
    assert terms[1]["oh"] < 0.9 * terms[0]["oh"] and terms[1]["bn"] < 0.9 * terms[0]["bn"]


def test_labels_without_training_examples_are_not_drawn():
    synthesis = replace(small_simulation("strategy=dense", *strategy_overrides("dense"))[0].strategy.synthesis, batch_size=500)
    task = Task("toy", (1, 8, 8), 5)
    everything = synthesis.labels(task, Seed(3))
    drawn = synthesis.labels(task.with_absent_classes(torch.tensor([0, 2, 3])), Seed(3))
    assert set(everything.tolist()) == {0, 1, 2, 3, 4} and set(drawn.tolist()) == {0, 2, 3}
    assert (drawn.diff() >= 0).all()
