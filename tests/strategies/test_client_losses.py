"""FedProx, FedNTD, MOON, FedGKD and FedProto: client losses against their equations, and what clients send and keep."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fedkd.federation import serialization
from fedkd.federation.client import batchnorm_statistic_names
from fedkd.models.cnn import MoonCNN
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Task, Update
from strategies.fedgkd import FedGKD
from strategies.fedntd import FedNTD
from strategies.fedproto import FedProto
from strategies.fedprox import FedProx
from strategies.moon import Moon
from tests import oracles
from tests.small_runs import same_tensors, small_run, small_simulation
from tests.strategies.strategy_tools import SWITCHES, check_equation, perceptron_embedding, small_perceptron, to_numpy


@pytest.mark.parametrize(("mu", "weight_decay"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_fedprox_loss(mu, weight_decay):
    simulation, _ = small_simulation("model=mlp", "model.widths=[3]", "precision=float64")
    model, x, y = deepcopy(simulation.model), torch.rand(5, 1, 8, 8, dtype=torch.float64), torch.arange(5)
    broadcast = {"model": {name: value + torch.rand_like(value) for name, value in simulation.initial.items()}}
    strategy, bound = FedProx(**SWITCHES, mu=mu, weight_decay=weight_decay), FunctionalModel(model)
    value, _ = strategy.loss(bound, Batch(x, y), broadcast, {})
    at, anchor = to_numpy(simulation.initial), to_numpy(broadcast["model"])
    assert value.item() == pytest.approx(oracles.fedprox(at, anchor, x.numpy(), y.numpy(), mu, weight_decay), rel=1e-12)
    plain, _ = FedProx(**SWITCHES, mu=0.0, weight_decay=0.0).loss(bound, Batch(x, y), broadcast, {})
    actual, base = (torch.autograd.grad(loss, list(model.parameters())) for loss in (value, plain))
    for (name, weight), gradient, without in zip(model.named_parameters(), actual, base):
        extra = mu * (weight - broadcast["model"][name]) + weight_decay * weight
        assert_close(gradient - without, extra.detach(), rtol=1e-9, atol=1e-12)


def test_fedprox_ignores_batchnorm_statistics():
    simulation, _ = small_simulation("strategy=fedprox", "strategy.batchnorm=averaged")
    broadcast, (batch, *_) = simulation.strategy.init_server(simulation.federation().server), simulation.client(0, 1).batches()
    value, _ = simulation.strategy.loss(FunctionalModel(simulation.model), batch, broadcast, {})
    away = {
        "model": {
            key: value + 1 if key in batchnorm_statistic_names(simulation.model) else value for key, value in broadcast["model"].items()
        }
    }
    assert torch.equal(simulation.strategy.loss(FunctionalModel(simulation.model), batch, away, {})[0], value)


@pytest.mark.parametrize(("beta", "tau"), [(0.0, 1.0), (1.0, 1.0), (0.7, 3.0)])
def test_fedntd_loss(beta, tau):
    model, x, y, (broadcast, _) = small_perceptron()
    batch, teacher = Batch(torch.from_numpy(x), torch.from_numpy(y)), oracles.mlp(to_numpy(broadcast), x)
    value, metrics = FedNTD(**SWITCHES, beta=beta, tau=tau).loss(FunctionalModel(model), batch, {"model": broadcast}, {})

    def equation(weights) -> float:
        logits = oracles.mlp(weights, x)
        return oracles.cross_entropy(logits, y).mean() + beta * oracles.not_true(teacher, logits, y, tau).mean()

    assert metrics == {}
    check_equation(value, model, equation, "head.weight", "head.bias")


@pytest.mark.parametrize(("mu", "tau"), [(0.0, 0.5), (1.0, 0.5), (5.0, 0.2)])
def test_moon_loss(mu, tau):
    model, x, y, others = small_perceptron(bias=1.0)
    batch = Batch(torch.from_numpy(x), torch.from_numpy(y), {"mu": torch.tensor(mu, dtype=torch.float64)})
    value, _ = Moon(**SWITCHES, mu=mu, tau=tau).loss(FunctionalModel(model), batch, {"model": others[0]}, {"previous": others[1]})
    near, far = (perceptron_embedding(to_numpy(other), x) for other in others)

    def equation(weights) -> float:
        contrast = oracles.contrastive(perceptron_embedding(weights, x), near, far, tau).mean()
        return oracles.cross_entropy(oracles.mlp(weights, x), y).mean() + mu * contrast

    check_equation(value, model, equation, "stages.0.1.bias", "head.bias")


def test_moon_contrasts_the_projection():
    """With MOON's CNN: z [B, 256] of two linear layers on 84 features, which the head reads without an activation between them."""
    networks = [MoonCNN(Task("cifar10", (3, 32, 32), 10), projection=256).double() for _ in range(3)]
    assert sum(weight.numel() for weight in networks[0].parameters()) == 92_626
    x, y, z = torch.rand(5, 3, 32, 32, dtype=torch.float64), torch.arange(5), []
    for network in networks:
        *features, first, _, second = network.embed
        h = nn.Sequential(*network.stages, *features)(x)
        z.append((h @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias)
        assert h.shape == (5, 84) and z[-1].shape == (5, 256) and (z[-1] < 0).any()
    logits = z[0] @ networks[0].head.weight.T + networks[0].head.bias
    batch = Batch(x, y, {"mu": torch.tensor(5.0, dtype=torch.float64)})
    others = [dict(network.named_parameters()) for network in networks[1:]]
    value, _ = Moon(**SWITCHES, mu=5.0, tau=0.5).loss(FunctionalModel(networks[0]), batch, {"model": others[0]}, {"previous": others[1]})
    contrast = oracles.contrastive(*(one.detach().numpy() for one in z), 0.5).mean()
    assert value.item() == pytest.approx(F.cross_entropy(logits, y).item() + 5 * contrast, rel=1e-12)


def test_moon_keeps_the_previous_model():
    simulation, _ = small_simulation("strategy=moon")
    broadcast, participant = simulation.strategy.init_server(simulation.federation().server), simulation.client(0, 1)
    sent, kept = simulation.strategy.train(participant, broadcast, None, 1)
    assert same_tensors({key: kept["previous"][key] for key in sent.state["model"]}, sent.state["model"])
    assert same_tensors({key: kept["previous"][key] for key in kept["local"]}, kept["local"])
    draws = [
        simulation.strategy._prepare(participant, broadcast, client_state, 2)[1][0].batches.drawn["mu"].tolist()
        for client_state in (None, kept)
    ]
    assert draws == [[0.0] * 4, [1.0] * 4]


@pytest.mark.parametrize("name", ["fedgkd", "fedntd", "moon"])
def test_frozen_networks_do_not_update_statistics(name):
    """The broadcast and the previous model run in eval mode, so a step counts one batch."""
    simulation, _ = small_simulation(f"strategy={name}")
    _, kept = simulation.strategy.train(simulation.client(0, 1), simulation.strategy.init_server(simulation.federation().server), None, 1)
    assert kept["local"]["stages.0.1.num_batches_tracked"] == 4


@pytest.mark.parametrize("gamma", [0.0, 0.2, 2.0])
@pytest.mark.parametrize("buffer", [1, 5])
def test_fedgkd_loss(gamma, buffer):
    model, x, y, (one, two) = small_perceptron()
    batch = Batch(torch.from_numpy(x), torch.from_numpy(y), {"gamma": torch.tensor(gamma, dtype=torch.float64)})
    broadcast = {"model": one} if buffer == 1 else {"model": one, "mean": two}
    value, _ = FedGKD(**SWITCHES, gamma=gamma, buffer=buffer).loss(FunctionalModel(model), batch, broadcast, {})
    teacher = oracles.mlp(to_numpy(one if buffer == 1 else two), x)

    def equation(weights) -> float:
        logits = oracles.mlp(weights, x)
        return oracles.cross_entropy(logits, y).mean() + gamma / 2 * oracles.kl(teacher, logits).mean()

    check_equation(value, model, equation, "head.weight", "head.bias")


def test_fedgkd_teacher_is_mean_of_last_global_models():
    simulation, _ = small_simulation("strategy=fedgkd", "strategy.buffer=3")
    server, seen = simulation.federation().server, []
    state = simulation.strategy.init_server(server)
    for number in range(1, 6):
        moved = {key: value + number for key, value in state["model"].items()}
        state, _ = simulation.strategy.aggregate(server, state, [Update(0, 5, "net", {"model": moved})], number)
        state = serialization.from_record(serialization.to_record(state))
        seen.append(state["model"])
        for key, value in state["mean"].items():
            assert_close(value, torch.stack([one[key] for one in seen[-3:]]).mean(0))
    assert len(state["past"]) == 3 * len(state["model"])


def test_fedgkd_with_buffer_of_one_sends_one_model():
    once, more = (small_simulation("strategy=fedgkd", f"strategy.buffer={buffer}")[0] for buffer in (1, 2))
    assert once.strategy.broadcast_parts == ("model",) and more.strategy.broadcast_parts == ("model", "mean")
    assert set(once.strategy.init_server(once.federation().server)) == {"model"}


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_fedproto_loss(weight):
    model, x, y, _ = small_perceptron()
    prototypes, known = np.random.default_rng(1).standard_normal((10, 8)), np.array([1.0] * 9 + [0.0])
    broadcast = {"prototypes": {"mean": torch.from_numpy(prototypes), "known": torch.from_numpy(known)}}
    value, sums = FedProto(**SWITCHES, weight=weight, prediction="head", candidates="all").loss(
        FunctionalModel(model), Batch(torch.from_numpy(x), torch.from_numpy(y)), broadcast, {}
    )

    def equation(weights) -> float:
        distance = oracles.prototype_distance(perceptron_embedding(weights, x), y, prototypes, known).mean()
        return oracles.cross_entropy(oracles.mlp(weights, x), y).mean() + weight * distance

    check_equation(value, model, equation, "stages.0.1.bias", "head.bias")
    z = perceptron_embedding(to_numpy(dict(model.named_parameters())), x)
    np.testing.assert_allclose(sums["embeddings"].numpy(), [z[y == label].sum(0) for label in range(10)], atol=1e-12)
    assert sums["labels"].tolist() == np.bincount(y, minlength=10).tolist() and not sums["embeddings"].requires_grad


@pytest.mark.parametrize(("aggregation", "expected"), [("examples", 2.5), ("uniform", 3.0)])
def test_fedproto_aggregation(aggregation, expected):
    """Class 0: 30 examples at 2 and 10 at 4. Class 1: one client. Class 2: none, so the last prototype stays. Class 3: never reported."""
    simulation, _ = small_simulation("strategy=fedproto", f"strategy.aggregation={aggregation}", "precision=float64")
    counts = torch.tensor([[30.0, 5, 0, 0], [10.0, 0, 0, 0]], dtype=torch.float64)
    means = torch.tensor([[[2.0], [7.0], [0.0], [0.0]], [[4.0], [0.0], [0.0], [0.0]]], dtype=torch.float64)
    updates = [Update(k, 9, "net", {"prototypes": {"mean": means[k], "count": counts[k]}}) for k in (0, 1)]
    before = {"mean": torch.tensor([[0.0], [0.0], [5.0], [0.0]]).double(), "known": torch.tensor([0.0, 0, 1, 0]).double()}
    after, _ = simulation.strategy.aggregate(simulation.federation().server, {"prototypes": before}, updates, 2)
    assert after["prototypes"]["mean"].flatten().tolist() == [expected, 7.0, 5.0, 0.0]
    assert after["prototypes"]["known"].tolist() == [1, 1, 1, 0]


def test_fedproto_clients_send_prototypes_only():
    simulation, _ = small_simulation("strategy=fedproto")
    broadcast = simulation.strategy.init_server(simulation.federation().server)
    (sent, kept), (other, _) = (simulation.strategy.train(simulation.client(k, 1), broadcast, None, 1) for k in (0, 1))
    assert set(sent.state) == set(other.state) == {"prototypes"}
    assert simulation.strategy.global_model(simulation.federation().server, broadcast) is None
    begun = simulation.strategy.initial_weights(simulation.client(0, 2), broadcast, kept)
    assert same_tensors(begun, {**kept["model"], **kept["local"]}) and not same_tensors(begun, simulation.initial)
    alone, together = small_run("strategy=fedproto", "strategy.weight=0").client_states, small_run("strategy=fedproto").client_states
    undistilled = small_run("strategy=feddistill_logits", "strategy.gamma=0").client_states
    assert all(same_tensors(client_state["model"], undistilled[client]["model"]) for client, client_state in alone.items()), (
        "every client trains on its own"
    )
    assert any(not same_tensors(client_state["model"], alone[client]["model"]) for client, client_state in together.items())
