"""FedGen against its equations (Zhu et al., ICML 2021) and against what its public code computes."""

from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.diversity import noise_distances
from fedkd.models.generators import FeatureMLP
from fedkd.models.mlp import MLP
from fedkd.seed import Seed
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, snapshot
from fedkd.types import Examples, State, Task, Update
from simulations.config import compose
from strategies.fedgen import FedGen
from tests import oracles
from tests.conftest import SMALL, same

TASK = Task("toy", (1, 2, 2), 3)
RNG = np.random.default_rng(7)
DOUBLE = torch.float64
LOSSES = ("teacher_loss", "diversity_loss")


@lru_cache
def configured() -> FedGen:
    """The strategy of conf/, with a generator of four hidden units and two noise entries."""
    config = compose([*SMALL, "strategy=fedgen", "strategy.generator.hidden=4", "strategy.generator.noise_size=2"])
    return instantiate(config.strategy, _convert_="all")


def fedgen(**changes) -> FedGen:
    """A fresh one with other knobs."""
    return replace(configured(), **changes)


def numpy(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in tensors.items()}


def toy(seed: int = 0, task: Task = TASK) -> MLP:
    torch.manual_seed(seed)
    return MLP(task, widths=[3]).to(DOUBLE)


def client(model: MLP, num_steps: int = 25, batch_size: int = 8) -> Client:
    x = torch.from_numpy(RNG.integers(0, 256, (40, *TASK.shape), dtype=np.uint8))
    y = torch.from_numpy(RNG.integers(0, TASK.num_classes, 40))
    return Client(
        id=0, task=TASK, seed=Seed(0) / "round" / 2 / "client" / 0, model=model, initial=snapshot(model), architecture="mlp",
        data=Examples(x, y, 255.0, (0.0,), (1.0,)), num_steps=num_steps, batch_size=batch_size, optimizer=torch.optim.SGD,
        lr=0.1, momentum=0.0, dtype=DOUBLE,
    )  # fmt: skip


def server(model: MLP, task: Task = TASK) -> Server:
    return Server(task, Seed(0) / "round" / 1 / "server", model, snapshot(model), 4, 10, DOUBLE)


def finish(strategy: FedGen, site: Server, state: State, updates: list[Update], server_round: int) -> State:
    """The state after a round: the server updates, and then refines."""
    state, _ = strategy.aggregate(site, state, updates, server_round)
    return strategy.server_training(site, state, updates, server_round)[0]


def compare(ours: torch.Tensor, parameters: dict[str, torch.Tensor], oracle, at: dict[str, np.ndarray]) -> None:
    """Value, and gradient by every parameter."""
    assert ours.item() == pytest.approx(oracle(at), rel=1e-12)
    gradients = dict(zip(parameters, torch.autograd.grad(ours, list(parameters.values()), allow_unused=True)))
    for name, slope in oracles.gradient(oracle, at).items():
        np.testing.assert_allclose(gradients[name].numpy(), slope, atol=1e-7, err_msg=name)


# ------------------------------------------------------------------------------------------------------ the client's loss
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (2.0, 0.0), (0.0, 3.0), (2.0, 3.0)])
def test_the_client_s_loss_is_the_equation(alpha, beta):
    model = toy()
    x, y, generated_y = RNG.random((6, *TASK.shape)), RNG.integers(0, 3, 6), RNG.integers(0, 3, 4)
    generated, latent = RNG.standard_normal((4, 3)), RNG.standard_normal((6, 3))
    drawn = {"generated": generated, "generated_y": generated_y, "latent": latent, "alpha": np.array(alpha), "beta": np.array(beta)}
    batch = Batch(torch.from_numpy(x), torch.from_numpy(y), {name: torch.from_numpy(value) for name, value in drawn.items()})
    value, metrics = fedgen().loss(FunctionalModel(model), batch, {}, {})
    at = numpy(dict(model.named_parameters()))

    def oracle(weights):
        return oracles.fedgen_client(weights, at, x, y, generated, generated_y, latent, alpha, beta)

    compare(value, dict(model.named_parameters()), oracle, at)
    assert metrics["labels"].tolist() == np.bincount(y, minlength=3).tolist()
    plain = cross_entropy(model(batch.x).logits, batch.y).mean()
    terms = batch.alpha * metrics["generated_loss"] + batch.beta * metrics["latent_divergence"]
    assert (value - plain).item() == pytest.approx(terms.item(), rel=1e-12)


# --------------------------------------------------------------------------------------------------- the generator's loss
@pytest.mark.parametrize("ensemble_loss", ["sum_of_losses", "loss_of_mean"])
@pytest.mark.parametrize("weighting", ["per_sample", "scalar", "none"])
def test_the_generator_s_loss_is_the_equation(weighting, ensemble_loss):
    strategy, model = fedgen(weighting=weighting, ensemble_loss=ensemble_loss, eta=0.7), toy()
    module = FeatureMLP(TASK, 3, hidden=4, noise_size=2).to(DOUBLE).train()
    heads = [snapshot(toy(k).head) for k in range(4)]
    counts = np.array([[3, 0, 1], [0, 5, 2], [7, 1, 0], [0, 0, 9]])
    noise, y = RNG.random((6, 2)), RNG.integers(0, 3, 6)
    shares = torch.from_numpy((1 + counts) / (1 + counts).sum(0))
    shared = {"heads": {key: torch.stack([head[key] for head in heads]) for key in heads[0]}, "labels": {"shares": shares}}
    batch = Batch(None, torch.from_numpy(y), {"noise": torch.from_numpy(noise), "distances": noise_distances(torch.from_numpy(noise))})
    value, metrics = strategy.generator_loss(FunctionalModel(module), batch, shared, {}, head=model.head)

    def oracle(weights):
        return oracles.fedgen_generator(weights, [numpy(head) for head in heads], counts, noise, y, 0.7, weighting, ensemble_loss)

    compare(value, dict(module.named_parameters()), oracle, numpy(dict(module.named_parameters())))
    assert value.item() == pytest.approx((metrics["teacher_loss"] + 0.7 * metrics["diversity_loss"]).item(), rel=1e-14)


def teacher_loss(logits: list[list[float]], y: list[int], shares: list[list[float]], **switches) -> float:
    """The generator's loss without diversity for heads that give these logits whatever they are shown."""
    head = nn.Linear(2, len(logits[0])).to(DOUBLE)
    biases = torch.tensor(logits, dtype=DOUBLE)
    shared = {"heads": {"weight": torch.zeros(len(logits), *head.weight.shape, dtype=DOUBLE), "bias": biases}}
    shared["labels"] = {"shares": torch.tensor(shares, dtype=DOUBLE)}
    batch = Batch(
        None, torch.tensor(y), {"noise": torch.zeros(len(y), 2, dtype=DOUBLE), "distances": torch.zeros(len(y), len(y), dtype=DOUBLE)}
    )
    strategy = fedgen(eta=0.0, **switches)
    return strategy.generator_loss(lambda noise, y: noise, batch, shared, {}, head=head)[0].item()


@pytest.mark.parametrize(("ensemble_loss", "value"), [("sum_of_losses", 1.1269280), ("loss_of_mean", 0.6931472)])
def test_the_sum_of_losses_is_not_the_loss_of_the_mean(ensemble_loss, value):
    """Two heads of opposite opinions: the public code's loss and the paper's equation 4."""
    found = teacher_loss([[2, 0], [-2, 0]], [0], [[0.5, 0.5], [0.5, 0.5]], weighting="none", ensemble_loss=ensemble_loss)
    assert found == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize(("weighting", "value"), [("per_sample", 0.0), ("scalar", 2.5)])
def test_the_public_code_s_broadcasting_makes_one_weight_of_a_batch_s(weighting, value):
    """Weights [1, 0] and losses [0, 10] of one head: as intended 0, and 2.5 where [B] times [B, 1] is [B, B]."""
    found = teacher_loss([[10, 0]], [0, 1], [[1.0, 0.0]], weighting=weighting, ensemble_loss="sum_of_losses")
    assert found == pytest.approx(value, abs=1e-4)


def test_heads_weigh_by_their_share_of_a_label_of_which_everybody_has_seen_one_at_least():
    strategy, model = fedgen(generator_steps=1, eta=0.0), toy()
    state = strategy.init_server(server(model))
    counts, heads = torch.tensor([[3, 0, 0], [0, 1, 0]]), [snapshot(toy(k).head) for k in range(2)]
    seen, original = {}, strategy.generator_loss
    strategy.generator_loss = lambda model, batch, shared, *args, **kwargs: (
        seen.update(shared),
        original(model, batch, shared, *args, **kwargs),
    )[1]
    strategy.train_generator(server(model), state, heads, counts, 1)
    np.testing.assert_allclose(seen["labels"]["shares"].numpy(), [[4 / 5, 1 / 3, 1 / 2], [1 / 5, 2 / 3, 1 / 2]])
    assert torch.equal(seen["heads"]["weight"][1], heads[1]["weight"])


# ------------------------------------------------------------------------------------------------- schedules and labels
def drawn(strategy: FedGen, server_round: int, model: MLP | None = None, **sizes) -> dict[str, torch.Tensor]:
    """What one client draws before a round, of the state as the run begins."""
    model = model or toy()
    site, state = client(model, **sizes), strategy.init_server(server(model))
    return strategy.prepare_batches(site, site.batches(), state, {}, server_round)


@pytest.mark.parametrize("server_round", [2, 3, 50, 2000])
@pytest.mark.parametrize(("name", "initial"), [("alpha", 10.0), ("beta", 10.0), ("alpha", 0.0), ("beta", 1e-5)])
def test_coefficients_decay_from_the_first_round_on_and_stop_at_the_floor(name, initial, server_round):
    found = drawn(fedgen(**{name: initial}, client_batch_size=8), server_round)[name]
    expected = oracles.decayed(initial, 0.98, 1e-4, server_round)
    np.testing.assert_allclose(found.numpy(), [expected] * 20 + [0.0] * 5, rtol=1e-12)


def test_the_floor_is_the_public_code_s():
    assert drawn(fedgen(client_batch_size=8), 5000)["alpha"][0] == 1e-4


@pytest.mark.parametrize(("steps", "active"), [(0, 0), (3, 3), (None, 25), (99, 25)])
def test_only_the_first_steps_of_a_round_are_regularised(steps, active):
    draws = drawn(fedgen(num_regularized_steps=steps), 2)
    for name in ("alpha", "beta"):
        assert (draws[name] > 0).tolist() == [True] * active + [False] * (25 - active)


@pytest.mark.parametrize("first_round", [False, True])
def test_the_first_round_has_no_regulariser_unless_asked_for(first_round):
    draws = drawn(fedgen(first_round=first_round), 1)
    assert bool(draws["alpha"][0] > 0) == bool(draws["beta"][0] > 0) == first_round


def test_the_share_of_generated_embeddings_scales_alpha_and_not_beta():
    """The public code's ratio is to the configured batch size, also for a client with fewer examples than that."""
    draws = drawn(fedgen(client_batch_size=24, decay=1.0), 2, batch_size=48)
    assert draws["alpha"][0] == 10 * 24 / 48 and draws["beta"][0] == 10
    assert draws["generated"].shape == (25, 24, 3) and draws["latent"].shape == (25, 40, 3)


def test_draws_are_the_frozen_generator_s_in_eval_mode():
    """Recomputed from the seeds: each generated label with noise of its own, the latent ones with the batch's labels."""
    strategy, model = fedgen(client_batch_size=5), toy()
    site, state = client(model), strategy.init_server(server(model))
    state["generator"]["hidden.1.running_mean"] += 0.3
    module = FeatureMLP(TASK, 3, hidden=4, noise_size=2).to(DOUBLE).eval()
    module.load_state_dict(state["generator"])
    batches = site.batches()
    draws = strategy.prepare_batches(site, batches, state, {}, 2)
    for name, labels, seed in (("generated", draws["generated_y"], "noise"), ("latent", batches.y, "latent")):
        noise = torch.rand(labels.numel(), 2, generator=(site.seed / seed).torch(), dtype=DOUBLE)
        torch.testing.assert_close(draws[name].flatten(0, 1), module(noise, labels.flatten()).detach(), rtol=1e-12, atol=1e-14)
        assert not draws[name].requires_grad


def test_in_train_mode_each_step_s_draws_are_normalised_by_themselves_and_the_state_stays():
    strategy, model = fedgen(client_batch_size=5, client_generator="train"), toy()
    site, state = client(model), strategy.init_server(server(model))
    before = {key: value.clone() for key, value in state["generator"].items()}
    module = FeatureMLP(TASK, 3, hidden=4, noise_size=2).to(DOUBLE).train()
    module.load_state_dict(state["generator"])
    batches = site.batches()
    draws = strategy.prepare_batches(site, batches, state, {}, 2)
    for name, labels, seed in (("generated", draws["generated_y"], "noise"), ("latent", batches.y, "latent")):
        noise = torch.rand(labels.numel(), 2, generator=(site.seed / seed).torch(), dtype=DOUBLE).view(*labels.shape, 2)
        for step in range(len(labels)):
            torch.testing.assert_close(draws[name][step], module(noise[step], labels[step]).detach(), rtol=1e-12, atol=1e-14)
    assert same(state["generator"], before)
    with pytest.raises(ValueError, match="^client_generator must be eval where batches are of one example"):
        drawn(fedgen(client_batch_size=1, client_generator="train"), 2)


@pytest.mark.parametrize(("noise", "low", "high"), [("uniform", 0, 1), ("normal", -9, 9)])
def test_noise_is_uniform_as_in_the_public_code_or_normal_as_in_the_paper(noise, low, high):
    drawn = fedgen(noise=noise).draw_noise(Seed(0), torch.zeros(1000), 2, DOUBLE)
    assert low <= drawn.min() and drawn.max() < high and bool((drawn < 0).any()) == (noise == "normal")
    assert drawn.std().item() == pytest.approx(1.0 if noise == "normal" else 12**-0.5, abs=0.05)


def test_clients_draw_each_step_afresh_from_the_probabilities_they_were_sent():
    strategy, model = fedgen(client_batch_size=200), toy()
    site, state = client(model), strategy.init_server(server(model))
    state["labels"]["probabilities"] = torch.tensor([0.25, 0.0, 0.75], dtype=DOUBLE)
    y = strategy.prepare_batches(site, site.batches(), state, {}, 2)["generated_y"]
    assert not torch.equal(y[0], y[1]) and (y == 1).sum() == 0
    assert (y == 2).double().mean().item() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("client_labels", "after_one", "after_two"),
    [("uniform", [1 / 2, 0, 1 / 2], [1 / 3, 1 / 3, 1 / 3]), ("counts", [1 / 4, 0, 3 / 4], [1 / 4, 3 / 4, 0])],
)
def test_labels_that_clients_draw_are_those_reported(client_labels, after_one, after_two):
    strategy, model = fedgen(client_labels=client_labels, generator_steps=0), toy()
    state = strategy.init_server(server(model))
    torch.testing.assert_close(state["labels"]["probabilities"], torch.full((3,), 1 / 3, dtype=DOUBLE))
    for number, counts, expected in ((1, [1, 0, 3], after_one), (2, [1, 3, 0], after_two)):
        updates = [Update(0, 10, "mlp", {"model": snapshot(model), "labels": {"counts": torch.tensor(counts)}})]
        state, _ = strategy.aggregate(server(model), state, updates, number)
        np.testing.assert_allclose(state["labels"]["probabilities"].numpy(), expected)


@pytest.mark.parametrize(("server_labels", "shares"), [("uniform", [1 / 2, 0, 1 / 2]), ("counts", [1 / 10, 0, 9 / 10])])
def test_labels_that_the_generator_learns_from_are_those_seen_this_round(server_labels, shares):
    strategy, model, seen = fedgen(server_labels=server_labels, generator_steps=50), toy(), []
    original = strategy.generator_loss
    strategy.generator_loss = lambda model, batch, *args, **kwargs: (seen.append(batch.y), original(model, batch, *args, **kwargs))[1]
    strategy.train_generator(server(model), strategy.init_server(server(model)), [snapshot(model.head)], torch.tensor([[1, 0, 9]]), 1)
    assert len(seen) == 50 and all(len(y) == 32 for y in seen)
    np.testing.assert_allclose(torch.stack(seen).flatten().bincount(minlength=3) / 1600, shares, atol=0.04)


# --------------------------------------------------------------------------------------------- the generator's training
def test_the_generator_learns_from_the_heads_as_trained_and_changes_no_client():
    strategy, model = fedgen(), toy()
    state = strategy.init_server(server(model))
    before, updates = {part: dict(tensors) for part, tensors in state.items()}, [
        Update(k, 10, "mlp", {"model": snapshot(toy(k)), "labels": {"counts": torch.tensor([4, 4, 4])}}) for k in range(3)
    ]  # fmt: skip
    copies, network = [{key: value.clone() for key, value in u.state["model"].items()} for u in updates], snapshot(model)
    after = finish(strategy, server(model), state, updates, 1)
    assert all(same(u.state["model"], copy) for u, copy in zip(updates, copies)) and same(snapshot(model), network)
    assert same(state, before) and not same(after["generator"], state["generator"])
    counts, heads = torch.full((3, 3), 4), [snapshot(toy(k).head) for k in range(3)]  # each client's, not the broadcast's or the mean's
    assert same(strategy.train_generator(server(model), state, heads, counts, 1)[0]["generator"], after["generator"])
    others = [replace(u, state={**u.state, "model": snapshot(toy(u.client + 5))}) for u in updates]
    assert not same(finish(strategy, server(model), state, others, 1)["generator"], after["generator"])


def test_the_update_alone_leaves_the_generator_and_the_refinement_all_else():
    """Clients evaluate the updated state while the generator trains: neither may touch what the other reads."""
    strategy, model = fedgen(generator_steps=3), toy()
    state = strategy.init_server(server(model))
    updates = [Update(k, 10, "mlp", {"model": snapshot(toy(k)), "labels": {"counts": torch.tensor([4, 0, 4])}}) for k in range(3)]
    updated, _ = strategy.aggregate(server(model), state, updates, 1)
    assert same(updated["generator"], state["generator"]) and "generator_optimizer" not in updated
    assert not same(updated["model"], state["model"]) and not same(updated["labels"], state["labels"])
    before = {part: {key: value.clone() for key, value in tensors.items()} for part, tensors in updated.items()}
    refined, metrics = strategy.server_training(server(model), updated, updates, 1)
    assert same(updated, before), "refine writes into nothing that it is given"
    assert not same(refined["generator"], updated["generator"]) and set(metrics) == {f"generator_{n}" for n in ("loss", *LOSSES)}
    trained = {"generator", "generator_optimizer"}
    assert same({part: t for part, t in refined.items() if part not in trained}, {p: t for p, t in updated.items() if p not in trained})


def test_the_generator_s_batchnorm_learns_on_the_server_and_its_optimizer_goes_on():
    strategy, model = fedgen(generator_steps=3), toy()
    state = strategy.init_server(server(model))
    updates = [Update(0, 10, "mlp", {"model": snapshot(model), "labels": {"counts": torch.tensor([4, 4, 4])}})]
    for number in (1, 2):
        state = finish(strategy, server(model), state, updates, number)
    assert state["generator"]["hidden.1.num_batches_tracked"] == 6 and state["generator_optimizer"]["step/output.weight"] == 6


def test_heads_weigh_by_their_clients_examples():
    strategy, model, seen = fedgen(generator_steps=1, weighting="examples"), toy(), {}
    original = strategy.head_weights
    strategy.head_weights = lambda shares: seen.setdefault("weights", original(shares))
    labels = {"labels": {"counts": torch.tensor([4, 0, 4])}}
    updates = [Update(k, examples, "mlp", {"model": snapshot(toy(k)), **labels}) for k, examples in enumerate((30, 10))]
    finish(strategy, server(model), strategy.init_server(server(model)), updates, 1)
    np.testing.assert_allclose(seen["weights"].numpy(), [[0.75] * 32, [0.25] * 32])


def test_the_global_head_as_the_only_teacher_is_a_federation_of_clients_that_have_it():
    """As FL-bench has it: whatever the clients' heads are, the generator learns from their mean."""
    strategy, model = fedgen(generator_steps=5, teacher="global"), toy()
    state = strategy.init_server(server(model))
    updates = [Update(k, 10, "mlp", {"model": snapshot(toy(k)), "labels": {"counts": torch.tensor([4, 4, 4])}}) for k in range(3)]
    found = finish(strategy, server(model), state, updates, 1)
    alike = [replace(u, state={**u.state, "model": found["model"]}) for u in updates]
    ensemble = finish(replace(strategy, teacher="heads"), server(model), state, alike, 1)
    for key, value in found["generator"].items():
        torch.testing.assert_close(value, ensemble["generator"][key], rtol=1e-9, atol=1e-12)
    assert not same(finish(replace(strategy, teacher="heads"), server(model), state, updates, 1)["generator"], found["generator"])


def test_a_fresh_optimizer_begins_anew_in_each_round():
    strategy, model = fedgen(generator_steps=3, fresh_optimizer=True), toy()
    state = strategy.init_server(server(model))
    updates = [Update(0, 10, "mlp", {"model": snapshot(model), "labels": {"counts": torch.tensor([4, 4, 4])}})]
    for number in (1, 2):
        state = finish(strategy, server(model), state, updates, number)
        assert state["generator_optimizer"]["step/output.weight"] == 3


@pytest.mark.parametrize("server_round", [1, 4])
def test_the_generator_s_learning_rate_decays_by_the_round(server_round):
    rates = []

    def optimizer(parameters):
        rates.append(torch.optim.Adam(parameters, lr=3e-4))
        return rates[-1]

    strategy, model = fedgen(generator_optimizer=optimizer), toy()
    strategy.train_generator(server(model), strategy.init_server(server(model)), [snapshot(model.head)], torch.ones(1, 3), server_round)
    assert rates[-1].param_groups[0]["lr"] == pytest.approx(3e-4 * 0.98 ** (server_round - 1), rel=1e-12)


def test_five_hundred_steps_teach_the_generator_what_disjoint_heads_know():
    """Each head reads its own half of the embedding, and between them they know four labels."""
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
    state = strategy.init_server(server(model, task))
    trained, _ = strategy.train_generator(server(model, task), state, heads, torch.full((2, 4), 5), 1)

    def losses(tensors):
        module = FeatureMLP(task, embedding, hidden=64, noise_size=8).to(DOUBLE).eval()
        module.load_state_dict(tensors)
        y = torch.arange(4).repeat(64)
        z = module(torch.rand(256, 8, generator=Seed(1).torch(), dtype=DOUBLE), y)
        return [cross_entropy(z @ head["weight"].T, y).mean().item() for head in heads]

    assert min(losses(state["generator"])) > 1 and max(losses(trained["generator"])) < 0.05


# ----------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1.0}, "alpha must be >= 0"),
        ({"beta": -1.0}, "beta must be >= 0"),
        ({"eta": -1.0}, "eta must be >= 0"),
        ({"floor": -1.0}, "floor must be >= 0"),
        ({"decay": 0.0}, "decay must be in"),
        ({"generator_lr_decay": 1.1}, "generator_lr_decay must be in"),
        ({"generator_batch_size": 1}, "generator_batch_size must be > 1"),
        ({"client_batch_size": 0}, "client_batch_size must be > 0"),
        ({"num_regularized_steps": -1}, "num_regularized_steps must be >= 0"),
        ({"weighting": "equal"}, "weighting must be one of per_sample, scalar, none, examples, got 'equal'"),
        ({"noise": "gaussian"}, "noise must be one of uniform, normal"),
    ],
)
def test_knobs_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fedgen(**change)
