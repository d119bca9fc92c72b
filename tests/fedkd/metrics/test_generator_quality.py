"""Label accuracy, diversity and coverage of a generator: against known values, plain loops, and at their limits."""

import math

import numpy as np
import pytest
import torch

from fedkd.metrics.generator_quality import coverage, diversity, label_accuracy
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Generated
from simulations.federation.generator_diagnostics import generated_logits
from tests.fedkd.metrics.plain_measures import plain_coverage, plain_diversity
from tests.small_runs import small_simulation


def test_label_accuracy_of_heads_with_known_predictions():
    """Embeddings are one-hot labels. Client 0 predicts the label, client 1 the next class, and client 2 always class 3."""
    simulation, _ = small_simulation("model=mlp", "model.widths=[10]")
    y = torch.arange(10).repeat_interleave(5)
    samples = Generated(torch.eye(10)[y], y, are_embeddings=True)
    shifted, constant = torch.eye(10).roll(1, 0), torch.zeros(10, 10)
    heads = [(5 * torch.eye(10), torch.zeros(10)), (shifted, torch.zeros(10)), (constant, 0.5 * torch.eye(10)[3])]
    networks = [
        FunctionalModel(simulation.model).at({**simulation.initial, "head.weight": weight, "head.bias": bias}) for weight, bias in heads
    ]
    logits = np.stack([generated_logits(network, samples, 7).detach().numpy() for network in networks])
    has_class = np.ones((3, 10), dtype=bool)
    has_class[0, 4] = has_class[1, 5] = has_class[1, 6] = has_class[2, 6] = has_class[2, 3] = False
    values = label_accuracy(logits, logits[1], y.numpy(), has_class)
    assert values["label_accuracy_ensemble"].tolist() == [1.0] * 10, "the first client has the largest logits"
    assert values["label_accuracy_global_model"].tolist() == [0.0] * 10
    assert values["num_clients_without_class"].tolist() == [0, 0, 0, 1, 1, 1, 2, 0, 0, 0]
    assert values["num_generated"].tolist() == [5] * 10
    third = 1 / 3
    expected = [third, third, third, 0.5, 0.0, 0.5, 1.0, third, third, third]
    assert values["label_accuracy_clients_with_class"] == pytest.approx(expected)
    assert values["label_accuracy_clients_without_class"][3:7].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert np.isnan(values["label_accuracy_clients_without_class"][[0, 1, 2, 7, 8, 9]]).all()


def test_a_class_without_generated_examples_has_no_label_accuracy():
    values = label_accuracy(np.eye(3)[None, :2], None, np.array([0, 1]), np.array([[True, False, False]]))
    assert values["label_accuracy_ensemble"][:2].tolist() == [1.0, 1.0] and np.isnan(values["label_accuracy_ensemble"][2])
    without_class = values["label_accuracy_clients_without_class"]
    assert np.isnan(without_class[[0, 2]]).all() and without_class[1] == 1.0
    assert np.isnan(values["label_accuracy_global_model"]).all()


def test_diversity_and_coverage_equal_plain_loops():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(40, 6)), rng.normal(0.8, 0.7, size=(30, 6))
    assert diversity(real) == pytest.approx(plain_diversity(real), rel=1e-12)
    assert 0 < coverage(real, generated) < 1
    assert coverage(real, generated) == pytest.approx(plain_coverage(real, generated), rel=1e-12)


def test_diversity_and_coverage_at_their_limits():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(50, 4))
    assert coverage(real, real) == 1.0 and coverage(real, real + 100) == 0.0
    assert coverage(real, np.repeat(real[:1], 50, 0)) < 0.3, "all generated points are equal"
    assert diversity(np.repeat(real[:1], 50, 0)) == 0.0
    assert math.isnan(diversity(real[:1])) and math.isnan(coverage(real[:5], real)) and math.isnan(coverage(real, real[:0]))


def test_coverage_of_equal_distributions():
    rng = np.random.default_rng(0)
    values = [coverage(rng.normal(size=(300, 3)), rng.normal(size=(300, 3))) for _ in range(10)]
    assert np.mean(values) == pytest.approx(1 - 2**-5, abs=0.015)


def test_a_generator_of_half_of_the_modes_covers_half_of_the_points():
    rng = np.random.default_rng(0)
    centers = 50 * np.eye(4)
    real = np.concatenate([center + rng.normal(size=(50, 4)) for center in centers])
    generated = np.concatenate([center + rng.normal(size=(100, 4)) for center in centers[:2]])
    assert coverage(real, generated) == pytest.approx(0.5, abs=0.03)
