"""FedGen: what clients draw before a round: coefficients, labels, and generated embeddings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedkd.models.generators import FeatureMLP
from fedkd.models.mlp import MLP
from fedkd.seed import Seed
from fedkd.training.functional_model import snapshot
from fedkd.types import Update
from strategies.fedgen import FedGen
from tests import oracles
from tests.small_runs import same_tensors
from tests.strategies.fedgen_tools import DOUBLE, TASK, fedgen, make_client, make_server, small_mlp


def draw(strategy: FedGen, server_round: int, model: MLP | None = None, **sizes) -> dict[str, torch.Tensor]:
    """The draws of one client before a round, for the initial state."""
    model = model or small_mlp()
    participant, state = make_client(model, **sizes), strategy.init_server(make_server(model))
    return strategy.prepare_batches(participant, participant.batches(), state, {}, server_round)


@pytest.mark.parametrize("server_round", [2, 3, 50, 2000])
@pytest.mark.parametrize(("name", "initial"), [("alpha", 10.0), ("beta", 10.0), ("alpha", 0.0), ("beta", 1e-5)])
def test_coefficients_decay_to_the_minimum(name, initial, server_round):
    actual = draw(fedgen(**{name: initial}, client_batch_size=8), server_round)[name]
    expected = oracles.decayed(initial, 0.98, 1e-4, server_round)
    np.testing.assert_allclose(actual.numpy(), [expected] * 20 + [0.0] * 5, rtol=1e-12)


def test_minimum_of_the_public_code():
    assert draw(fedgen(client_batch_size=8), 5000)["alpha"][0] == 1e-4


@pytest.mark.parametrize(("steps", "active"), [(0, 0), (3, 3), (None, 25), (99, 25)])
def test_num_regularized_steps(steps, active):
    draws = draw(fedgen(num_regularized_steps=steps), 2)
    for name in ("alpha", "beta"):
        assert (draws[name] > 0).tolist() == [True] * active + [False] * (25 - active)


@pytest.mark.parametrize("first_round", [False, True])
def test_regularize_first_round(first_round):
    draws = draw(fedgen(regularize_first_round=first_round), 1)
    assert bool(draws["alpha"][0] > 0) == bool(draws["beta"][0] > 0) == first_round


def test_client_batch_size_scales_alpha_only():
    """As in the public code the ratio is to the configured batch size, also for a client with fewer examples."""
    draws = draw(fedgen(client_batch_size=24, coefficient_decay=1.0), 2, batch_size=48)
    assert draws["alpha"][0] == 10 * 24 / 48 and draws["beta"][0] == 10
    assert draws["generated"].shape == (25, 24, 3) and draws["latent"].shape == (25, 40, 3)


def test_embeddings_in_eval_mode():
    """Embeddings recomputed from the seeds: with drawn labels, and with the labels of the batch."""
    strategy, model = fedgen(client_batch_size=5), small_mlp()
    participant, state = make_client(model), strategy.init_server(make_server(model))
    state["generator"]["hidden.1.running_mean"] += 0.3
    module = FeatureMLP(TASK, 3, hidden=4, noise_size=2).to(DOUBLE).eval()
    module.load_state_dict(state["generator"])
    batches = participant.batches()
    draws = strategy.prepare_batches(participant, batches, state, {}, 2)
    for name, labels, seed in (("generated", draws["generated_y"], "noise"), ("latent", batches.y, "latent")):
        noise = torch.rand(labels.numel(), 2, generator=(participant.seed / seed).torch(), dtype=DOUBLE)
        torch.testing.assert_close(draws[name].flatten(0, 1), module(noise, labels.flatten()).detach(), rtol=1e-12, atol=1e-14)
        assert not draws[name].requires_grad


def test_embeddings_in_train_mode():
    strategy, model = fedgen(client_batch_size=5, client_generator="train"), small_mlp()
    participant, state = make_client(model), strategy.init_server(make_server(model))
    before = {key: value.clone() for key, value in state["generator"].items()}
    module = FeatureMLP(TASK, 3, hidden=4, noise_size=2).to(DOUBLE).train()
    module.load_state_dict(state["generator"])
    batches = participant.batches()
    draws = strategy.prepare_batches(participant, batches, state, {}, 2)
    for name, labels, seed in (("generated", draws["generated_y"], "noise"), ("latent", batches.y, "latent")):
        noise = torch.rand(labels.numel(), 2, generator=(participant.seed / seed).torch(), dtype=DOUBLE).view(*labels.shape, 2)
        for step in range(len(labels)):
            torch.testing.assert_close(draws[name][step], module(noise[step], labels[step]).detach(), rtol=1e-12, atol=1e-14)
    assert same_tensors(state["generator"], before)
    with pytest.raises(ValueError, match="^client_generator must be eval where batches are of one example"):
        draw(fedgen(client_batch_size=1, client_generator="train"), 2)


@pytest.mark.parametrize(("noise", "low", "high"), [("uniform", 0, 1), ("normal", -9, 9)])
def test_noise_distributions(noise, low, high):
    drawn = fedgen(noise=noise).draw_noise(Seed(0), torch.zeros(1000), 2, DOUBLE)
    assert low <= drawn.min() and drawn.max() < high and bool((drawn < 0).any()) == (noise == "normal")
    assert drawn.std().item() == pytest.approx(1.0 if noise == "normal" else 12**-0.5, abs=0.05)


def test_labels_follow_the_broadcast_probabilities():
    strategy, model = fedgen(client_batch_size=200), small_mlp()
    participant, state = make_client(model), strategy.init_server(make_server(model))
    state["labels"]["probabilities"] = torch.tensor([0.25, 0.0, 0.75], dtype=DOUBLE)
    y = strategy.prepare_batches(participant, participant.batches(), state, {}, 2)["generated_y"]
    assert not torch.equal(y[0], y[1]) and (y == 1).sum() == 0
    assert (y == 2).double().mean().item() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("client_labels", "after_one", "after_two"),
    [("uniform", [1 / 2, 0, 1 / 2], [1 / 3, 1 / 3, 1 / 3]), ("counts", [1 / 4, 0, 3 / 4], [1 / 4, 3 / 4, 0])],
)
def test_clients_draw_reported_labels(client_labels, after_one, after_two):
    strategy, model = fedgen(client_labels=client_labels, generator_steps=0), small_mlp()
    state = strategy.init_server(make_server(model))
    torch.testing.assert_close(state["labels"]["probabilities"], torch.full((3,), 1 / 3, dtype=DOUBLE))
    for number, counts, expected in ((1, [1, 0, 3], after_one), (2, [1, 3, 0], after_two)):
        updates = [Update(0, 10, "mlp", {"model": snapshot(model), "labels": {"counts": torch.tensor(counts)}})]
        state, _ = strategy.aggregate(make_server(model), state, updates, number)
        np.testing.assert_allclose(state["labels"]["probabilities"].numpy(), expected)


def test_labels_that_no_client_holds_are_not_drawn_in_the_first_round():
    server = make_server(small_mlp())
    task = server.task.with_absent_classes(torch.tensor([2, 0, 0]))
    state = fedgen().init_server(replace(server, task=task))
    assert task.absent == (1,) and state["labels"]["probabilities"].tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize(("server_labels", "shares"), [("uniform", [1 / 2, 0, 1 / 2]), ("counts", [1 / 10, 0, 9 / 10])])
def test_generator_learns_from_labels_of_the_round(server_labels, shares):
    strategy, model, recorded = fedgen(server_labels=server_labels, generator_steps=50), small_mlp(), []
    original = strategy.generator_loss
    strategy.generator_loss = lambda model, batch, *args, **kwargs: (recorded.append(batch.y), original(model, batch, *args, **kwargs))[1]
    strategy.train_generator(
        make_server(model), strategy.init_server(make_server(model)), [snapshot(model.head)], torch.tensor([[1, 0, 9]]), 1
    )
    assert len(recorded) == 50 and all(len(y) == 32 for y in recorded)
    np.testing.assert_allclose(torch.stack(recorded).flatten().bincount(minlength=3) / 1600, shares, atol=0.04)
