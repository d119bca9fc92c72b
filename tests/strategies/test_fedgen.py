"""FedGen against its equations (Zhu et al., ICML 2021) and against its public code."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.diversity import noise_distances
from fedkd.models.generators import FeatureMLP
from fedkd.models.mlp import MLP
from fedkd.seed import Seed
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, snapshot
from fedkd.types import Task, Update
from tests import oracles
from tests.small_runs import same_tensors
from tests.strategies.fedgen_tools import DOUBLE, RNG, TASK, fedgen, finish_round, make_server, small_mlp
from tests.strategies.strategy_tools import to_numpy

LOSSES = ("teacher_loss", "diversity_loss")


def check_gradients(actual: torch.Tensor, parameters: dict[str, torch.Tensor], oracle, at: dict[str, np.ndarray]) -> None:
    """Check the value of a loss, and its gradient by all parameters."""
    assert actual.item() == pytest.approx(oracle(at), rel=1e-12)
    gradients = dict(zip(parameters, torch.autograd.grad(actual, list(parameters.values()), allow_unused=True)))
    for name, slope in oracles.gradient(oracle, at).items():
        np.testing.assert_allclose(gradients[name].numpy(), slope, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (2.0, 0.0), (0.0, 3.0), (2.0, 3.0)])
def test_client_loss(alpha, beta):
    model = small_mlp()
    x, y, generated_y = RNG.random((6, *TASK.shape)), RNG.integers(0, 3, 6), RNG.integers(0, 3, 4)
    generated, latent = RNG.standard_normal((4, 3)), RNG.standard_normal((6, 3))
    drawn = {"generated": generated, "generated_y": generated_y, "latent": latent, "alpha": np.array(alpha), "beta": np.array(beta)}
    batch = Batch(torch.from_numpy(x), torch.from_numpy(y), {name: torch.from_numpy(value) for name, value in drawn.items()})
    value, metrics = fedgen().loss(FunctionalModel(model), batch, {}, {})
    at = to_numpy(dict(model.named_parameters()))

    def oracle(weights):
        return oracles.fedgen_client(weights, at, x, y, generated, generated_y, latent, alpha, beta)

    check_gradients(value, dict(model.named_parameters()), oracle, at)
    assert metrics["labels"].tolist() == np.bincount(y, minlength=3).tolist()
    plain = cross_entropy(model(batch.x).logits, batch.y).mean()
    terms = batch.alpha * metrics["generated_loss"] + batch.beta * metrics["latent_divergence"]
    assert (value - plain).item() == pytest.approx(terms.item(), rel=1e-12)


@pytest.mark.parametrize("ensemble_loss", ["sum_of_losses", "loss_of_mean"])
@pytest.mark.parametrize("weighting", ["per_sample", "scalar", "none"])
def test_generator_loss(weighting, ensemble_loss):
    strategy, model = fedgen(weighting=weighting, ensemble_loss=ensemble_loss, eta=0.7), small_mlp()
    module = FeatureMLP(TASK, 3, hidden=4, noise_size=2).to(DOUBLE).train()
    heads = [snapshot(small_mlp(k).head) for k in range(4)]
    counts = np.array([[3, 0, 1], [0, 5, 2], [7, 1, 0], [0, 0, 9]])
    noise, y = RNG.random((6, 2)), RNG.integers(0, 3, 6)
    shares = torch.from_numpy((1 + counts) / (1 + counts).sum(0))
    broadcast = {"heads": {key: torch.stack([head[key] for head in heads]) for key in heads[0]}, "labels": {"shares": shares}}
    batch = Batch(None, torch.from_numpy(y), {"noise": torch.from_numpy(noise), "distances": noise_distances(torch.from_numpy(noise))})
    value, metrics = strategy.generator_loss(FunctionalModel(module), batch, broadcast, {}, head=model.head)

    def oracle(weights):
        return oracles.fedgen_generator(weights, [to_numpy(head) for head in heads], counts, noise, y, 0.7, weighting, ensemble_loss)

    check_gradients(value, dict(module.named_parameters()), oracle, to_numpy(dict(module.named_parameters())))
    assert value.item() == pytest.approx((metrics["teacher_loss"] + 0.7 * metrics["diversity_loss"]).item(), rel=1e-14)


def teacher_loss(logits: list[list[float]], y: list[int], shares: list[list[float]], **parameters) -> float:
    """The generator's loss without diversity for heads with constant logits."""
    head = nn.Linear(2, len(logits[0])).to(DOUBLE)
    biases = torch.tensor(logits, dtype=DOUBLE)
    broadcast = {"heads": {"weight": torch.zeros(len(logits), *head.weight.shape, dtype=DOUBLE), "bias": biases}}
    broadcast["labels"] = {"shares": torch.tensor(shares, dtype=DOUBLE)}
    batch = Batch(
        None, torch.tensor(y), {"noise": torch.zeros(len(y), 2, dtype=DOUBLE), "distances": torch.zeros(len(y), len(y), dtype=DOUBLE)}
    )
    strategy = fedgen(eta=0.0, **parameters)
    return strategy.generator_loss(lambda noise, y: noise, batch, broadcast, {}, head=head)[0].item()


@pytest.mark.parametrize(("ensemble_loss", "value"), [("sum_of_losses", 1.1269280), ("loss_of_mean", 0.6931472)])
def test_ensemble_losses_differ(ensemble_loss, value):
    """The losses of the public code and of the paper's equation 4 for two heads with opposite predictions."""
    actual = teacher_loss([[2, 0], [-2, 0]], [0], [[0.5, 0.5], [0.5, 0.5]], weighting="none", ensemble_loss=ensemble_loss)
    assert actual == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize(("weighting", "value"), [("per_sample", 0.0), ("scalar", 2.5)])
def test_scalar_weighting_of_the_public_code(weighting, value):
    """Weights [1, 0] and losses [0, 10] of one head: 0 by sample, and 2.5 where [B] times [B, 1] is broadcast to [B, B]."""
    actual = teacher_loss([[10, 0]], [0, 1], [[1.0, 0.0]], weighting=weighting, ensemble_loss="sum_of_losses")
    assert actual == pytest.approx(value, abs=1e-4)


def test_weights_of_heads():
    strategy, model = fedgen(generator_steps=1, eta=0.0), small_mlp()
    state = strategy.init_server(make_server(model))
    counts, heads = torch.tensor([[3, 0, 0], [0, 1, 0]]), [snapshot(small_mlp(k).head) for k in range(2)]
    recorded, original = {}, strategy.generator_loss
    strategy.generator_loss = lambda model, batch, broadcast, *args, **kwargs: (
        recorded.update(broadcast),
        original(model, batch, broadcast, *args, **kwargs),
    )[1]
    strategy.train_generator(make_server(model), state, heads, counts, 1)
    np.testing.assert_allclose(recorded["labels"]["shares"].numpy(), [[4 / 5, 1 / 3, 1 / 2], [1 / 5, 2 / 3, 1 / 2]])
    assert torch.equal(recorded["heads"]["weight"][1], heads[1]["weight"])


def test_generator_learns_from_trained_heads():
    strategy, model = fedgen(), small_mlp()
    state = strategy.init_server(make_server(model))
    before, updates = {part: dict(tensors) for part, tensors in state.items()}, [
        Update(k, 10, "mlp", {"model": snapshot(small_mlp(k)), "labels": {"counts": torch.tensor([4, 4, 4])}}) for k in range(3)
    ]  # fmt: skip
    copies, network = [{key: value.clone() for key, value in u.state["model"].items()} for u in updates], snapshot(model)
    after = finish_round(strategy, make_server(model), state, updates, 1)
    assert all(same_tensors(u.state["model"], copy) for u, copy in zip(updates, copies)) and same_tensors(snapshot(model), network)
    assert same_tensors(state, before) and not same_tensors(after["generator"], state["generator"])
    counts, heads = torch.full((3, 3), 4), [snapshot(small_mlp(k).head) for k in range(3)]  # the heads of the clients
    assert same_tensors(strategy.train_generator(make_server(model), state, heads, counts, 1)[0]["generator"], after["generator"])
    others = [replace(u, state={**u.state, "model": snapshot(small_mlp(u.client + 5))}) for u in updates]
    assert not same_tensors(finish_round(strategy, make_server(model), state, others, 1)["generator"], after["generator"])


def test_aggregate_and_server_training_change_different_parts():
    """Clients evaluate the aggregated state while the generator trains, so the parts must be different."""
    strategy, model = fedgen(generator_steps=3), small_mlp()
    state = strategy.init_server(make_server(model))
    updates = [Update(k, 10, "mlp", {"model": snapshot(small_mlp(k)), "labels": {"counts": torch.tensor([4, 0, 4])}}) for k in range(3)]
    updated, _ = strategy.aggregate(make_server(model), state, updates, 1)
    assert same_tensors(updated["generator"], state["generator"]) and "generator_optimizer" not in updated
    assert not same_tensors(updated["model"], state["model"]) and not same_tensors(updated["labels"], state["labels"])
    before = {part: {key: value.clone() for key, value in tensors.items()} for part, tensors in updated.items()}
    refined, metrics = strategy.server_training(make_server(model), updated, updates, 1)
    assert same_tensors(updated, before), "server_training does not change its arguments"
    assert not same_tensors(refined["generator"], updated["generator"]) and set(metrics) == {f"generator_{n}" for n in ("loss", *LOSSES)}
    trained = {"generator", "generator_optimizer"}
    assert same_tensors(
        {part: t for part, t in refined.items() if part not in trained}, {p: t for p, t in updated.items() if p not in trained}
    )


def test_generator_state_is_kept_over_rounds():
    strategy, model = fedgen(generator_steps=3), small_mlp()
    state = strategy.init_server(make_server(model))
    updates = [Update(0, 10, "mlp", {"model": snapshot(model), "labels": {"counts": torch.tensor([4, 4, 4])}})]
    for number in (1, 2):
        state = finish_round(strategy, make_server(model), state, updates, number)
    assert state["generator"]["hidden.1.num_batches_tracked"] == 6 and state["generator_optimizer"]["step/output.weight"] == 6


def test_weighting_by_examples():
    strategy, model, recorded = fedgen(generator_steps=1, weighting="examples"), small_mlp(), {}
    original = strategy.head_weights
    strategy.head_weights = lambda shares: recorded.setdefault("weights", original(shares))
    labels = {"labels": {"counts": torch.tensor([4, 0, 4])}}
    updates = [Update(k, examples, "mlp", {"model": snapshot(small_mlp(k)), **labels}) for k, examples in enumerate((30, 10))]
    finish_round(strategy, make_server(model), strategy.init_server(make_server(model)), updates, 1)
    np.testing.assert_allclose(recorded["weights"].numpy(), [[0.75] * 32, [0.25] * 32])


def test_global_teacher_equals_clients_with_the_global_head():
    """As in FL-bench, the generator learns from the mean of the clients' heads."""
    strategy, model = fedgen(generator_steps=5, teacher="global"), small_mlp()
    state = strategy.init_server(make_server(model))
    updates = [Update(k, 10, "mlp", {"model": snapshot(small_mlp(k)), "labels": {"counts": torch.tensor([4, 4, 4])}}) for k in range(3)]
    actual = finish_round(strategy, make_server(model), state, updates, 1)
    alike = [replace(u, state={**u.state, "model": actual["model"]}) for u in updates]
    ensemble = finish_round(replace(strategy, teacher="heads"), make_server(model), state, alike, 1)
    for key, value in actual["generator"].items():
        torch.testing.assert_close(value, ensemble["generator"][key], rtol=1e-9, atol=1e-12)
    assert not same_tensors(
        finish_round(replace(strategy, teacher="heads"), make_server(model), state, updates, 1)["generator"], actual["generator"]
    )


def test_fresh_optimizer():
    strategy, model = fedgen(generator_steps=3, fresh_optimizer=True), small_mlp()
    state = strategy.init_server(make_server(model))
    updates = [Update(0, 10, "mlp", {"model": snapshot(model), "labels": {"counts": torch.tensor([4, 4, 4])}})]
    for number in (1, 2):
        state = finish_round(strategy, make_server(model), state, updates, number)
        assert state["generator_optimizer"]["step/output.weight"] == 3


@pytest.mark.parametrize("server_round", [1, 4])
def test_generator_learning_rate_decay(server_round):
    rates = []

    def optimizer(parameters):
        rates.append(torch.optim.Adam(parameters, lr=3e-4))
        return rates[-1]

    strategy, model = fedgen(generator_optimizer=optimizer), small_mlp()
    strategy.train_generator(
        make_server(model), strategy.init_server(make_server(model)), [snapshot(model.head)], torch.ones(1, 3), server_round
    )
    assert rates[-1].param_groups[0]["lr"] == pytest.approx(3e-4 * 0.98 ** (server_round - 1), rel=1e-12)


def test_generator_learns_from_disjoint_heads():
    """Each head uses its own half of the embedding."""
    task, embedding = Task("toy", (1, 2, 2), 4), 8
    torch.manual_seed(0)
    model = MLP(task, widths=[embedding]).to(DOUBLE)
    eye = torch.eye(4, dtype=DOUBLE)
    weights = [torch.cat([eye, 0 * eye], 1), torch.cat([0 * eye, eye], 1)]
    heads = [{"weight": 4 * weight, "bias": torch.zeros(4, dtype=DOUBLE)} for weight in weights]
    strategy = fedgen(
        generator=partial(FeatureMLP, hidden=64, noise_size=8), generator_steps=500,
        generator_optimizer=partial(torch.optim.Adam, lr=3e-3), weighting="none", ensemble_loss="sum_of_losses",
    )  # fmt: skip
    state = strategy.init_server(make_server(model, task))
    trained, _ = strategy.train_generator(make_server(model, task), state, heads, torch.full((2, 4), 5), 1)

    def losses(tensors):
        module = FeatureMLP(task, embedding, hidden=64, noise_size=8).to(DOUBLE).eval()
        module.load_state_dict(tensors)
        y = torch.arange(4).repeat(64)
        z = module(torch.rand(256, 8, generator=Seed(1).torch(), dtype=DOUBLE), y)
        return [cross_entropy(z @ head["weight"].T, y).mean().item() for head in heads]

    assert min(losses(state["generator"])) > 1 and max(losses(trained["generator"])) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1.0}, "alpha must be >= 0"),
        ({"beta": -1.0}, "beta must be >= 0"),
        ({"eta": -1.0}, "eta must be >= 0"),
        ({"min_coefficient": -1.0}, "min_coefficient must be >= 0"),
        ({"coefficient_decay": 0.0}, "coefficient_decay must be in"),
        ({"generator_lr_decay": 1.1}, "generator_lr_decay must be in"),
        ({"generator_batch_size": 1}, "generator_batch_size must be > 1"),
        ({"client_batch_size": 0}, "client_batch_size must be > 0"),
        ({"num_regularized_steps": -1}, "num_regularized_steps must be >= 0"),
        ({"weighting": "equal"}, "weighting must be one of per_sample, scalar, none, examples, got 'equal'"),
        ({"noise": "gaussian"}, "noise must be one of uniform, normal"),
    ],
)
def test_parameters_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        fedgen(**change)
