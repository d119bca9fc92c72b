"""Every strategy: its equation, its neutral knob, its purity; and what the strategies have in common."""

from copy import deepcopy
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fedkd.federation import serialization
from fedkd.federation.aggregation import average, mean_batchnorm_statistics
from fedkd.federation.client import batchnorm_statistics
from fedkd.metrics.accuracy import evaluate
from fedkd.seed import Seed
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.loop import channels_last
from fedkd.types import Update
from simulations.engine.local_engine import LocalGrid
from strategies.fedavg import FedAvg
from strategies.feddistill import FedDistill
from strategies.fedgkd import FedGKD
from strategies.fedntd import FedNTD
from strategies.fedproto import FedProto
from strategies.fedprox import FedProx
from strategies.moon import Moon
from strategies.scaffold import Scaffold
from tests import golden, oracles
from tests.conftest import STRATEGIES, options, run, same, settle

PUBLIC = {"batchnorm": "local", "aggregation": "examples", "lr_schedule": "last_participation", "lr_decay": 0.99, "shared_layers": "all"}
FEDGEN_OFF = ("strategy=fedgen", "strategy.generator_steps=4", "strategy.alpha=0", "strategy.beta=0")
NEUTRAL = {
    "fedprox": ("strategy=fedprox", "strategy.mu=0", "strategy.weight_decay=0"),
    "fedgen": FEDGEN_OFF,
    "fedgen in all rounds": (*FEDGEN_OFF, "strategy.regularize_first_round=true", "strategy.num_regularized_steps=null"),
    "feddistill": ("strategy=feddistill", "strategy.gamma=0"),
    "fedensemble": ("strategy=fedensemble",),
    "fedgkd": ("strategy=fedgkd", "strategy.gamma=0"),
    "fedntd": ("strategy=fedntd", "strategy.beta=0"),
    "moon": ("strategy=moon", "strategy.mu=0"),
    "scaffold": ("strategy=scaffold", "strategy.correction=0"),
    "feddf": ("strategy=feddf", *options("feddf"), "strategy.steps=0"),
    "dense": ("strategy=dense", *options("dense"), "strategy.epochs=0"),
    "fedftg": ("strategy=fedftg", *options("fedftg"), "strategy.iterations=0"),
}
ALIKE = {
    "feddf": ("strategy.batchnorm=averaged", "public_data=held_out"),
    **dict.fromkeys(("dense", "fedftg"), ("strategy.batchnorm=averaged",)),
}
"""What FedAvg must have in common with a strategy to be its limit."""
AWAY = {
    "fedprox mu": (*NEUTRAL["fedprox"], "strategy.mu=0.5"),
    "fedprox weight_decay": (*NEUTRAL["fedprox"], "strategy.weight_decay=0.1"),
    "fedgen alpha": (*FEDGEN_OFF, "strategy.alpha=1"),
    "fedgen beta": (*FEDGEN_OFF, "strategy.beta=1"),
    "feddistill gamma": (*NEUTRAL["feddistill"], "strategy.gamma=1"),
    "fedgkd gamma": (*NEUTRAL["fedgkd"], "strategy.gamma=1"),
    "fedgkd gamma, the broadcast teaches": (*NEUTRAL["fedgkd"], "strategy.gamma=1", "strategy.buffer=1"),
    "fedntd beta": (*NEUTRAL["fedntd"], "strategy.beta=1"),
    "moon mu": (*NEUTRAL["moon"], "strategy.mu=1", "clients_per_round=6"),
    "scaffold correction": (*NEUTRAL["scaffold"], "strategy.correction=1"),
    "scaffold server_lr": (*NEUTRAL["scaffold"], "strategy.server_lr=0.5"),
    "feddf steps": (*NEUTRAL["feddf"], "strategy.steps=2"),
    "dense epochs": (*NEUTRAL["dense"], "strategy.epochs=1"),
    "fedftg iterations": (*NEUTRAL["fedftg"], "strategy.iterations=1"),
}


def numpy(tensors):
    return {name: value.detach().numpy() for name, value in tensors.items()}


# --------------------------------------------------------------------------------------------------------------- limits
@pytest.mark.parametrize("name", NEUTRAL)
def test_at_its_neutral_knob_a_strategy_is_fedavg_bit_for_bit(name, switches):
    ours, fedavg = run(*NEUTRAL[name], switches), run("strategy=fedavg", switches, *ALIKE.get(name, ()))
    assert same(ours.state["model"], fedavg.state["model"])
    for client, memory in fedavg.memories.items():
        assert same({part: ours.memories[client][part] for part in memory}, memory)
    assert [ours.metrics[r]["train_loss"] for r in (1, 2, 3)] == [fedavg.metrics[r]["train_loss"] for r in (1, 2, 3)]


@pytest.mark.parametrize("name", AWAY)
def test_away_from_it_it_is_not(name, switches):
    common = [option for option in AWAY[name] if not option.startswith(("strategy", "+strategy", "public_data"))]
    common += ALIKE.get(name.split()[0], ())
    ours, fedavg = run(*AWAY[name], switches).state["model"], run("strategy=fedavg", switches, *common).state["model"]
    assert ours.keys() == fedavg.keys()
    assert all(not torch.equal(ours[key], fedavg[key]) for key in ours if ours[key].ndim > 1)


@pytest.mark.parametrize("name", ["fedgen", "feddistill", "fedgkd", "moon", "scaffold"])
def test_the_first_round_is_fedavg_s(name, switches):
    ours, fedavg = run(f"strategy={name}", *options(name), switches, "rounds=1"), run("strategy=fedavg", switches, "rounds=1")
    assert same(ours.state["model"], fedavg.state["model"])
    assert not same(run(f"strategy={name}", *options(name), switches).state["model"], run("strategy=fedavg", switches).state["model"])


def test_the_paper_s_fedgen_has_generated_embeddings_in_the_first_round():
    ours = run("strategy=fedgen_paper", "rounds=1", "strategy.generator_steps=4")
    fedavg = run("strategy=fedavg", "protocol@strategy=paper", "rounds=1")
    assert not same(ours.state["model"], fedavg.state["model"])
    assert ours.home.strategy.batchnorm == "averaged" and ours.home.strategy.aggregation == "uniform"


# --------------------------------------------------------------------------------------------------- centralised training
@pytest.mark.parametrize("optimizer", ["optimizer.momentum=0.0", "optimizer.momentum=0.9"])
def test_one_client_is_centralised_sgd_bit_for_bit(switches, optimizer):
    """A plain loop: fresh order and fresh momentum every round, BatchNorm statistics carried on."""
    ran = run("strategy=fedavg", switches, optimizer, "num_clients=1", "clients_per_round=1", "rounds=4", "local_steps=5")
    data, config = ran.home.train.subset(ran.home.partition.train[0]), ran.home.config
    model = deepcopy(ran.home.model)
    model.load_state_dict(ran.home.initial)
    for weight in model.parameters():
        weight.data = channels_last(weight.data)
    for server_round in range(1, 5):
        lr = 0.01 * (0.99 ** max(server_round - 2, 0) if "public_data" in switches else 1.0)
        stepper = torch.optim.SGD(model.parameters(), lr=lr, momentum=config.optimizer.momentum)
        random = (Seed(config.seed) / "round" / server_round / "client" / 0 / "order").torch()
        for index in torch.randperm(len(data), generator=random)[:80].split(16):
            stepper.zero_grad()
            F.cross_entropy(model.train()(data.images(index)).logits, data.y[index]).backward()
            stepper.step()
    final = {**ran.state["model"], **ran.memories[0].get("local", {})}
    assert ("local" in ran.memories[0]) == ("public_data" in switches)
    assert same(final, dict(model.state_dict()))


# ------------------------------------------------------------------------------------------------------------ averaging
def update(client: int, value: float, num_examples: int, batches: int = 0) -> Update:
    return Update(client, num_examples, "mlp", {"model": {"w": torch.tensor([value, -value]), "n": torch.tensor(batches)}})


@pytest.mark.parametrize(("aggregation", "mean"), [("examples", 3.5), ("uniform", 3.0)])
def test_models_are_averaged_by_examples_or_uniformly(aggregation, mean):
    """Clients with 10 and 30 examples at 2 and 4: (10 * 2 + 30 * 4) / 40, or (2 + 4) / 2."""
    home, _ = settle("strategy=fedavg", f"strategy.aggregation={aggregation}")
    updates = [update(0, 2.0, 10, 5), update(1, 4.0, 30, 7)]
    state, _ = home.strategy.aggregate(home.federation().server, {"other": {}}, updates, 1)
    assert state["model"]["w"].tolist() == [mean, -mean]
    assert state["model"]["n"] == 7 and state["model"]["n"].dtype == torch.int64
    assert "other" in state


@pytest.mark.parametrize("weights", [[0.2, 0.3, 0.5], [1 / 3] * 3, [1.0]])
def test_identical_clients_average_to_themselves(weights):
    home, _ = settle("strategy=fedavg")
    mean = average([home.initial] * len(weights), weights)
    assert mean.keys() == home.initial.keys()
    for key, value in home.initial.items():
        assert_close(mean[key], value, rtol=1e-6, atol=1e-7)


def test_the_statistics_of_a_federation_are_the_mean_over_clients_that_have_trained():
    def memory(mean, num_examples, last_round, batches):
        counts = {"last_round": torch.tensor(last_round), "num_examples": torch.tensor(num_examples)}
        return {"local": {"mean": torch.tensor([mean]), "batches": torch.tensor(batches)}, "client": counts}

    found = mean_batchnorm_statistics([memory(1.0, 10, 2, 8), memory(5.0, 30, 1, 4), memory(99.0, 50, 0, 0)])
    assert found["mean"].item() == 4.0 and found["batches"] == 8
    assert mean_batchnorm_statistics([memory(99.0, 50, 0, 0)]) == {} == mean_batchnorm_statistics([])


# ------------------------------------------------------------------------------------------------------------ BatchNorm
@pytest.mark.parametrize("name", ["fedavg", "fedgen", "feddistill", "feddistill_logits"])
@pytest.mark.parametrize("batchnorm", ["local", "averaged"])
def test_batchnorm_statistics_stay_with_the_client_or_travel(name, batchnorm, monkeypatch):
    sent, returned = [], []
    home, text = settle(f"strategy={name}", *options(name), f"strategy.batchnorm={batchnorm}", "rounds=2")
    stays, original = batchnorm_statistics(home.model), home.strategy.aggregate
    monkeypatch.setattr(home.strategy, "aggregate", lambda server, state, updates, number: (
        sent.append(state), returned.extend(updates), original(server, state, updates, number))[2])  # fmt: skip
    grid = LocalGrid(home.config.num_clients, text)
    home.strategy.start(grid, num_rounds=2)
    travel = [{key for part in state.values() for key in part} & stays for state in (*sent, *(u.state for u in returned))]
    if batchnorm == "local":
        assert not any(travel)
        kept = [{key.partition(":")[2] for key in record} for record in grid.memory.values()]
        assert kept and all(stays <= keys for keys in kept)
    elif name != "feddistill_logits":
        assert all(keys == stays for keys in travel)
        assert not any(key.startswith("local:") for record in grid.memory.values() for key in record)


def test_with_local_statistics_the_prediction_has_the_mean_of_those_who_trained():
    ran = run("strategy=fedavg", "strategy.batchnorm=local")
    server = replace(ran.home.federation().server, memories=ran.memories)
    predicted = dict(ran.home.strategy.global_model(server, ran.state).state_dict())
    sizes = {client: len(ran.home.partition.train[client]) for client in ran.memories}
    assert 3 <= len(sizes) and all(len(ran.memories[k]["local"]) == 6 for k in sizes)
    for key, value in predicted.items():
        if key in ran.state["model"]:
            assert torch.equal(value, ran.state["model"][key])
        elif key.endswith("num_batches_tracked"):
            assert value == max(memory["local"][key] for memory in ran.memories.values())
        else:
            mean = sum(size * ran.memories[k]["local"][key] for k, size in sizes.items()) / sum(sizes.values())
            assert_close(value, mean)


def test_with_averaged_statistics_the_prediction_is_the_state():
    ran = run("strategy=fedavg", "strategy.batchnorm=averaged")
    server = replace(ran.home.federation().server, memories=ran.memories)
    assert same(dict(ran.home.strategy.global_model(server, ran.state).state_dict()), ran.state["model"])
    assert ran.state["model"]["stages.0.1.num_batches_tracked"] == 12  # three rounds of four steps: the most that a client can have seen


def test_who_sat_out_keeps_his_statistics_and_begins_from_the_new_broadcast():
    home, _ = settle("strategy=fedavg")
    shared = home.strategy.init_server(home.federation().server)
    _, kept = home.strategy.train(home.client(0, 1), shared, None, 1)
    moved = {"model": {key: value + 1 for key, value in shared["model"].items()}}
    begun = home.strategy.initial_weights(home.client(0, 3), moved, kept)
    assert same({key: begun[key] for key in moved["model"]}, moved["model"])
    assert same({key: begun[key] for key in kept["local"]}, kept["local"])
    assert not torch.equal(begun["stages.0.1.running_mean"], home.initial["stages.0.1.running_mean"])


# -------------------------------------------------------------------------------------------------- learning-rate schedule
class RecordingSGD(torch.optim.SGD):
    """SGD that notes the learning rates it was made with."""

    made: ClassVar[list[float]] = []

    def __init__(self, params, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.made.append(lr)


@pytest.mark.parametrize("schedule", ["last_participation", "round", "constant"])
def test_the_learning_rate_of_a_client_follows_the_schedule(schedule, monkeypatch):
    """As in FedGen's public code, ``last_participation`` is ``lr * decay^r`` with r the 0-based round in which it last trained."""
    home, text = settle(
        "strategy=fedavg", f"strategy.lr_schedule={schedule}", f"optimizer._target_={__name__}.RecordingSGD", "rounds=7", "local_steps=1",
        "clients_per_round=2", "num_clients=5",
    )  # fmt: skip
    monkeypatch.setattr(RecordingSGD, "made", [])
    home.strategy.start(LocalGrid(5, text), num_rounds=7)
    expected, last = [], {}
    for zero_based in range(7):
        for client in home.strategy.cohort(range(5), zero_based + 1):
            exponent = {"constant": 0, "round": zero_based, "last_participation": last.get(client, 0)}[schedule]
            expected.append(0.01 * 0.99**exponent)
            last[client] = zero_based
    assert RecordingSGD.made == pytest.approx(expected, rel=1e-12)
    assert len(set(expected)) == 1 if schedule == "constant" else len(set(expected)) > 3


# -------------------------------------------------------------------------------------------------------------- FedProx
@pytest.mark.parametrize(("mu", "weight_decay"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_fedprox_s_loss_is_the_equation(mu, weight_decay):
    home, _ = settle("model=mlp", "model.widths=[3]", "precision=float64")
    model, x, y = deepcopy(home.model), torch.rand(5, 1, 8, 8, dtype=torch.float64), torch.arange(5)
    broadcast = {"model": {name: value + torch.rand_like(value) for name, value in home.initial.items()}}
    strategy, bound = FedProx(**PUBLIC, mu=mu, weight_decay=weight_decay), FunctionalModel(model)
    value, _ = strategy.loss(bound, Batch(x, y), broadcast, {})
    at, anchor = numpy(home.initial), numpy(broadcast["model"])
    assert value.item() == pytest.approx(oracles.fedprox(at, anchor, x.numpy(), y.numpy(), mu, weight_decay), rel=1e-12)
    plain, _ = FedProx(**PUBLIC, mu=0.0, weight_decay=0.0).loss(bound, Batch(x, y), broadcast, {})
    ours, base = (torch.autograd.grad(loss, list(model.parameters())) for loss in (value, plain))
    for (name, weight), gradient, without in zip(model.named_parameters(), ours, base):
        extra = mu * (weight - broadcast["model"][name]) + weight_decay * weight
        assert_close(gradient - without, extra.detach(), rtol=1e-9, atol=1e-12)


def test_fedprox_s_pull_is_towards_the_broadcast_and_spares_batchnorm_s_statistics():
    home, _ = settle("strategy=fedprox", "strategy.batchnorm=averaged")
    shared, (batch, *_) = home.strategy.init_server(home.federation().server), home.client(0, 1).batches()
    value, _ = home.strategy.loss(FunctionalModel(home.model), batch, shared, {})
    away = {"model": {key: value + 1 if key in batchnorm_statistics(home.model) else value for key, value in shared["model"].items()}}
    assert torch.equal(home.strategy.loss(FunctionalModel(home.model), batch, away, {})[0], value)


# ------------------------------------------------------------------------------------------------- FedNTD, MOON, FedGKD
def gradients(loss, at) -> dict[str, torch.Tensor]:
    """Of a loss by the parameters of a network."""
    return dict(zip((name for name, _ in at.named_parameters()), torch.autograd.grad(loss, list(at.parameters()))))


def perceptron(width: int = 8, bias: float = 0.0):
    """A network that :func:`tests.oracles.mlp` computes too, six examples of its task, and two networks around it."""
    home, _ = settle("model=mlp", f"model.widths=[{width}]", "precision=float64")
    model, random = deepcopy(home.model), np.random.default_rng(0)
    model.stages[0][1].bias.data += bias  # units that are active
    x, y = random.random((6, 1, 2, 32)), np.array([0, 1, 2, 2, 3, 9])
    others = [{k: v + torch.from_numpy(random.standard_normal(v.shape)) for k, v in model.state_dict().items()} for _ in range(2)]
    return model, x, y, others


def embedding(weights, x):
    """What the head of that network reads."""
    return np.maximum(oracles.linear(weights, "stages.0.1", x.reshape(len(x), -1)), 0)


def agrees(value, model, equation, *names: str) -> None:
    """A loss has the value of an equation in all weights, and its gradient by those of ``names``."""
    at, found = numpy(dict(model.named_parameters())), gradients(value, model)
    assert value.item() == pytest.approx(equation(at), rel=1e-12)
    slopes = oracles.gradient(lambda part: equation({**at, **part}), {name: at[name] for name in names})
    for name, slope in slopes.items():
        np.testing.assert_allclose(found[name].numpy(), slope, atol=1e-6)


@pytest.mark.parametrize(("beta", "tau"), [(0.0, 1.0), (1.0, 1.0), (0.7, 3.0)])
def test_fedntd_s_loss_is_the_equation(beta, tau):
    model, x, y, (broadcast, _) = perceptron()
    batch, teacher = Batch(torch.from_numpy(x), torch.from_numpy(y)), oracles.mlp(numpy(broadcast), x)
    value, metrics = FedNTD(**PUBLIC, beta=beta, tau=tau).loss(FunctionalModel(model), batch, {"model": broadcast}, {})

    def equation(weights) -> float:
        logits = oracles.mlp(weights, x)
        return oracles.cross_entropy(logits, y).mean() + beta * oracles.not_true(teacher, logits, y, tau).mean()

    assert metrics == {}
    agrees(value, model, equation, "head.weight", "head.bias")


@pytest.mark.parametrize(("mu", "tau"), [(0.0, 0.5), (1.0, 0.5), (5.0, 0.2)])
def test_moon_s_loss_is_the_equation(mu, tau):
    model, x, y, others = perceptron(bias=1.0)
    batch = Batch(torch.from_numpy(x), torch.from_numpy(y), {"mu": torch.tensor(mu, dtype=torch.float64)})
    value, _ = Moon(**PUBLIC, mu=mu, tau=tau).loss(FunctionalModel(model), batch, {"model": others[0]}, {"previous": others[1]})
    near, far = (embedding(numpy(other), x) for other in others)

    def equation(weights) -> float:
        contrast = oracles.contrastive(embedding(weights, x), near, far, tau).mean()
        return oracles.cross_entropy(oracles.mlp(weights, x), y).mean() + mu * contrast

    agrees(value, model, equation, "stages.0.1.bias", "head.bias")


def test_moon_remembers_the_model_it_sent_and_has_no_contrast_before():
    home, _ = settle("strategy=moon")
    shared, site = home.strategy.init_server(home.federation().server), home.client(0, 1)
    sent, kept = home.strategy.train(site, shared, None, 1)
    assert same({key: kept["previous"][key] for key in sent.state["model"]}, sent.state["model"])
    assert same({key: kept["previous"][key] for key in kept["local"]}, kept["local"])
    draws = [home.strategy._prepare(site, shared, own, 2)[1][0][0].drawn["mu"].tolist() for own in (None, kept)]
    assert draws == [[0.0] * 4, [1.0] * 4]


@pytest.mark.parametrize("name", ["fedgkd", "fedntd", "moon"])
def test_frozen_networks_do_not_move_statistics(name):
    """The broadcast and the last model are looked at in eval mode: a step counts one batch."""
    home, _ = settle(f"strategy={name}")
    _, kept = home.strategy.train(home.client(0, 1), home.strategy.init_server(home.federation().server), None, 1)
    assert kept["local"]["stages.0.1.num_batches_tracked"] == 4


@pytest.mark.parametrize("gamma", [0.0, 0.2, 2.0])
@pytest.mark.parametrize("buffer", [1, 5])
def test_fedgkd_s_loss_is_the_equation(gamma, buffer):
    model, x, y, (one, two) = perceptron()
    batch = Batch(torch.from_numpy(x), torch.from_numpy(y), {"gamma": torch.tensor(gamma, dtype=torch.float64)})
    shared = {"model": one} if buffer == 1 else {"model": one, "mean": two}
    value, _ = FedGKD(**PUBLIC, gamma=gamma, buffer=buffer).loss(FunctionalModel(model), batch, shared, {})
    teacher = oracles.mlp(numpy(one if buffer == 1 else two), x)

    def equation(weights) -> float:
        logits = oracles.mlp(weights, x)
        return oracles.cross_entropy(logits, y).mean() + gamma / 2 * oracles.kl(teacher, logits).mean()

    agrees(value, model, equation, "head.weight", "head.bias")


def test_fedgkd_s_teacher_is_the_mean_of_the_last_global_models():
    home, _ = settle("strategy=fedgkd", "strategy.buffer=3")
    server, seen = home.federation().server, []
    state = home.strategy.init_server(server)
    for number in range(1, 6):
        moved = {key: value + number for key, value in state["model"].items()}
        state, _ = home.strategy.aggregate(server, state, [Update(0, 5, "net", {"model": moved})], number)
        state = serialization.from_record(serialization.to_record(state))
        seen.append(state["model"])
        for key, value in state["mean"].items():
            assert_close(value, torch.stack([one[key] for one in seen[-3:]]).mean(0))
    assert len(state["past"]) == 3 * len(state["model"])


def test_fedgkd_with_the_broadcast_as_its_teacher_sends_nothing_more():
    once, more = (settle("strategy=fedgkd", f"strategy.buffer={buffer}")[0] for buffer in (1, 2))
    assert once.strategy.broadcast_parts == ("model",) and more.strategy.broadcast_parts == ("model", "mean")
    assert set(once.strategy.init_server(once.federation().server)) == {"model"}


# ------------------------------------------------------------------------------------------------------------- FedProto
@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_fedproto_s_loss_is_the_equation(weight):
    model, x, y, _ = perceptron()
    prototypes, known = np.random.default_rng(1).standard_normal((10, 8)), np.array([1.0] * 9 + [0.0])
    shared = {"prototypes": {"mean": torch.from_numpy(prototypes), "known": torch.from_numpy(known)}}
    value, sums = FedProto(**PUBLIC, weight=weight).loss(
        FunctionalModel(model), Batch(torch.from_numpy(x), torch.from_numpy(y)), shared, {}
    )

    def equation(weights) -> float:
        distance = oracles.prototype_distance(embedding(weights, x), y, prototypes, known).mean()
        return oracles.cross_entropy(oracles.mlp(weights, x), y).mean() + weight * distance

    agrees(value, model, equation, "stages.0.1.bias", "head.bias")
    z = embedding(numpy(dict(model.named_parameters())), x)
    np.testing.assert_allclose(sums["embeddings"].numpy(), [z[y == label].sum(0) for label in range(10)], atol=1e-12)
    assert sums["labels"].tolist() == np.bincount(y, minlength=10).tolist() and not sums["embeddings"].requires_grad


@pytest.mark.parametrize(("aggregation", "expected"), [("examples", 2.5), ("uniform", 3.0)])
def test_fedproto_s_prototypes_are_means_over_those_who_have_the_class(aggregation, expected):
    """Class 0: 30 examples at 2 and 10 at 4; class 1: one client alone; class 2: nobody, as before; class 3: never."""
    home, _ = settle("strategy=fedproto", f"strategy.aggregation={aggregation}", "precision=float64")
    counts = torch.tensor([[30.0, 5, 0, 0], [10.0, 0, 0, 0]], dtype=torch.float64)
    means = torch.tensor([[[2.0], [7.0], [0.0], [0.0]], [[4.0], [0.0], [0.0], [0.0]]], dtype=torch.float64)
    updates = [Update(k, 9, "net", {"prototypes": {"mean": means[k], "count": counts[k]}}) for k in (0, 1)]
    before = {"mean": torch.tensor([[0.0], [0.0], [5.0], [0.0]]).double(), "known": torch.tensor([0.0, 0, 1, 0]).double()}
    after, _ = home.strategy.aggregate(home.federation().server, {"prototypes": before}, updates, 2)
    assert after["prototypes"]["mean"].flatten().tolist() == [expected, 7.0, 5.0, 0.0]
    assert after["prototypes"]["known"].tolist() == [1, 1, 1, 0]


def test_fedproto_s_clients_keep_their_models_and_send_prototypes_alone():
    home, _ = settle("strategy=fedproto")
    shared = home.strategy.init_server(home.federation().server)
    (sent, kept), (other, _) = (home.strategy.train(home.client(k, 1), shared, None, 1) for k in (0, 1))
    assert set(sent.state) == set(other.state) == {"prototypes"}
    assert home.strategy.global_model(home.federation().server, shared) is None
    begun = home.strategy.initial_weights(home.client(0, 2), shared, kept)
    assert same(begun, {**kept["model"], **kept["local"]}) and not same(begun, home.initial)
    alone, together = run("strategy=fedproto", "strategy.weight=0").memories, run("strategy=fedproto").memories
    undistilled = run("strategy=feddistill_logits", "strategy.gamma=0").memories
    assert all(same(memory["model"], undistilled[client]["model"]) for client, memory in alone.items()), "each trains alone"
    assert any(not same(memory["model"], alone[client]["model"]) for client, memory in together.items())


# ------------------------------------------------------------------------------------------------------------- SCAFFOLD
class Quadratics(FedAvg):
    """Client i minimises ``a_i / 2 (w - b_i)^2``, w being the first bias of the head."""

    def prepare_batches(self, client, batches, shared, own, server_round):
        return {name: torch.full((len(batches),), values[client.id], dtype=client.dtype) for name, values in PARABOLAS.items()}

    def loss(self, model, batch, shared, own):
        return batch.a / 2 * (model.parameters()["head.bias"][0] - batch.b) ** 2, {}


class CorrectedQuadratics(Scaffold, Quadratics):
    """The same by SCAFFOLD."""


PARABOLAS = {"a": (1.0, 4.0), "b": (0.0, 1.0)}


@pytest.mark.parametrize(("correction", "momentum", "end"), [(0.0, 0.0, 0.6041260), (1.0, 0.0, 0.8), (1.0, 0.5, 0.8)])
def test_scaffold_finds_the_optimum_that_fedavg_misses(correction, momentum, end):
    """Two parabolas, ten steps of 0.1; the optimum of their mean is 0.8."""
    home, text = settle(
        "strategy=scaffold", f"strategy._target_={__name__}.CorrectedQuadratics", f"strategy.correction={correction}", "model=mlp",
        "protocol@strategy=paper", "precision=float64", "num_clients=2", "clients_per_round=2", "local_steps=10", "batch_size=8",
        "optimizer.lr=0.1", f"optimizer.momentum={momentum}",
    )  # fmt: skip
    state = home.strategy.init_server(home.federation().server)
    state = {**state, "model": {**state["model"], "head.bias": torch.zeros(10, dtype=torch.float64)}}
    grid = LocalGrid(2, text)
    for rounds in (3, 60):
        grid.memory.clear()
        result = home.strategy.start(grid, serialization.to_record(state), num_rounds=rounds)
        final, memories = serialization.from_record(result.arrays), [serialization.from_record(grid.memory[k]) for k in (0, 1)]
        x, own, c = oracles.scaffold(*map(np.array, PARABOLAS.values()), rounds, 10, 0.1, momentum, correct=correction > 0)
        assert final["model"]["head.bias"][0].item() == pytest.approx(x, abs=1e-12)
        assert [memory["control"]["head.bias"][0].item() for memory in memories] == pytest.approx(own.tolist(), abs=1e-12)
        assert final["control"]["head.bias"][0].item() == pytest.approx(c, abs=1e-12) == pytest.approx(np.mean(own), abs=1e-12)
    assert x == pytest.approx(end, abs=1e-6)


def test_scaffold_s_server_moves_by_its_learning_rate_and_its_control_by_the_share_that_took_part():
    home, _ = settle("strategy=scaffold", "strategy.server_lr=0.5", "protocol@strategy=paper")
    state = {"model": {"w": torch.tensor([1.0])}, "control": {"w": torch.tensor([10.0])}}
    ends, changes = (3.0, 5.0), (6.0, 0.0)
    sent = [{"model": {"w": torch.tensor([e])}, "control": {"w": torch.tensor([c])}} for e, c in zip(ends, changes)]
    after, _ = home.strategy.aggregate(home.federation().server, state, [Update(k, 5, "net", one) for k, one in enumerate(sent)], 1)
    assert after["control"]["w"].item() == pytest.approx(10 + 2 / 6 * 3) and after["model"]["w"].item() == pytest.approx(1 + 0.5 * 3)


def test_scaffold_reports_the_cross_entropy_and_has_a_variate_for_parameters_alone():
    home, _ = settle("strategy=scaffold")
    state = home.strategy.init_server(home.federation().server)
    assert set(state["control"]) == {name for name, _ in home.model.named_parameters()}
    batch, own = next(iter(home.client(0, 1).batches())), home.strategy._new_client_state(home.client(0, 1))
    moved = {**state, "control": {name: value + 1 for name, value in state["control"].items()}}
    values = [home.strategy.loss(FunctionalModel(home.model.eval()), batch, shared, own)[0] for shared in (state, moved)]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-12)
    plain, pushed = (gradients(value, home.model) for value in values)
    assert all(torch.allclose(pushed[name], plain[name] + 1, atol=1e-5) for name in plain)


# ----------------------------------------------------------------------------------------------------------- FedDistill
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
def test_feddistill_s_loss_is_the_equation(gamma):
    home, _ = settle("model=mlp", "model.widths=[3]", "precision=float64")
    model, random = deepcopy(home.model), np.random.default_rng(0)
    x, y, table = random.random((6, 1, 2, 32)), random.integers(0, 10, 6), random.standard_normal((10, 10))
    strategy = FedDistill(**PUBLIC, share_model=True, gamma=gamma, accumulate=True, initial_count=1, leave_one_out=False)
    shared = {"logits": {"mean": torch.from_numpy(table).requires_grad_()}}
    batch = Batch(torch.from_numpy(x), torch.from_numpy(y), {"gamma": torch.tensor(gamma)})
    value, metrics = strategy.loss(FunctionalModel(model), batch, shared, {})
    at, names = numpy(home.initial), [name for name, _ in model.named_parameters()]
    assert value.item() == pytest.approx(oracles.feddistill(at, table, x, y, gamma), rel=1e-12)
    gradients = dict(zip(names, torch.autograd.grad(value, list(model.parameters()))))
    heads = {key: at[key] for key in names if key.startswith("head.")}
    slopes = oracles.gradient(lambda head: oracles.feddistill({**at, **head}, table, x, y, gamma), heads)
    for name, slope in slopes.items():
        np.testing.assert_allclose(gradients[name].numpy(), slope, atol=1e-7)
    logits = oracles.mlp(at, x)
    np.testing.assert_allclose(metrics["logits"].numpy(), [logits[y == label].sum(0) for label in range(10)], atol=1e-12)
    assert metrics["labels"].tolist() == np.bincount(y, minlength=10).tolist()
    assert not metrics["logits"].requires_grad


@pytest.mark.parametrize(("accumulate", "initial_count"), [(True, 1), (False, 1), (True, 0), (False, 0)])
def test_feddistill_s_table_over_two_rounds(accumulate, initial_count, monkeypatch):
    home, text = settle(
        "strategy=feddistill", "model=mlp", "precision=float64", "clients_per_round=6", f"strategy.accumulate={str(accumulate).lower()}",
        f"strategy.initial_count={initial_count}", "partition.alpha=0.1",
    )  # fmt: skip
    strategy, original, seen = home.strategy, home.strategy.loss, []

    def spy(model, batch, shared, own):
        seen.append((model(batch.x).logits.detach().numpy(), batch.y.numpy(), shared["logits"]["mean"].clone(), float(batch.gamma)))
        return original(model, batch, shared, own)

    monkeypatch.setattr(strategy, "loss", spy)
    result = strategy.start(LocalGrid(6, text), num_rounds=3)
    steps = home.config.local_steps
    by_client = [[seen[(r * 6 + k) * steps + s] for r in range(3) for s in range(steps)] for k in range(6)]
    for number in (1, 2):
        begin = 0 if accumulate else (number - 1) * steps
        tables = []
        for mine in by_client:
            logits, labels = (np.concatenate([step[i] for step in mine[begin : number * steps]]) for i in (0, 1))
            tables.append(oracles.logit_table(logits, labels, 10, initial_count))
        np.testing.assert_allclose(by_client[0][number * steps][2].numpy(), np.mean(tables, axis=0), rtol=1e-12)
    assert [by_client[0][r * steps][3] for r in range(3)] == [0.0, 1.0, 1.0]
    assert any((table == 0).all(1).any() for table in tables)  # some client has not seen some class
    assert len(result.train_metrics_clientapp) == 3


def test_feddistill_without_models_has_no_global_one_and_clients_keep_their_own():
    once, twice = run("strategy=feddistill_logits", "rounds=1"), run("strategy=feddistill_logits", "rounds=2", "clients_per_round=6")
    home, first = once.home, once.home.strategy.cohort(range(6), 1)
    assert set(once.state) == {"logits"} and home.strategy.global_model(home.federation().server, once.state) is None
    assert sorted(once.memories) == first and home.strategy.broadcast_parts == ("logits",)
    assert not same(once.memories[first[0]]["model"], once.memories[first[1]]["model"])
    for client, memory in once.memories.items():
        begun = home.strategy.initial_weights(home.client(client, 2), once.state, memory)
        assert same(begun, {**memory["model"], **memory["local"]})
        assert memory["client"]["last_round"] == 1
    stranger = next(client for client in range(6) if client not in first)
    site = home.client(stranger, 1)
    assert same(home.strategy.initial_weights(site, once.state, home.strategy._new_client_state(site)), home.initial)
    assert all(memory["local"]["stages.0.1.num_batches_tracked"] == 8 for memory in twice.memories.values())


def test_feddistill_s_clients_send_logits_alone_unless_models_are_shared():
    for name, parts in (("feddistill", {"model", "logits"}), ("feddistill_logits", {"logits"})):
        home, _ = settle(f"strategy={name}")
        sent, _ = home.strategy.train(home.client(0, 1), home.strategy.init_server(home.federation().server), None, 1)
        assert set(sent.state) == parts


def test_feddistill_leaves_the_receiver_out():
    """Of two clients each learns from the other's table; who sat out learns from the mean of both; alone there is nothing to learn."""
    home, text = settle(
        "strategy=feddistill_logits", "strategy.leave_one_out=true", "num_clients=3", "clients_per_round=2", "precision=float64", "model=mlp",
    )  # fmt: skip
    strategy, grid = home.strategy, LocalGrid(3, text)
    state = serialization.from_record(strategy.start(grid, num_rounds=1).arrays)
    one, two = strategy.cohort(range(3), 1)
    memories = {client: serialization.from_record(record) for client, record in grid.memory.items()}
    sent = {client: memories[client]["logits"]["sent"] for client in (one, two)}
    assert state["logits"]["clients"] == 2 and not torch.equal(sent[one], sent[two])
    out = next(iter({0, 1, 2} - {one, two}))
    for client, table in {one: sent[two], two: sent[one], out: (sent[one] + sent[two]) / 2}.items():
        site = home.client(client, 2)
        own = memories.get(client) or strategy._new_client_state(site)
        batch = next(iter(strategy._prepare(site, state, own, 2)[1][0][0]))
        assert_close(strategy.table(batch, state, own), table, rtol=1e-12, atol=1e-12)
        assert batch.gamma == 1
    alone = {"logits": {"mean": sent[one], "clients": torch.tensor(1.0, dtype=torch.float64)}}
    assert next(iter(strategy._prepare(home.client(one, 2), alone, memories[one], 2)[1][0][0])).gamma == 0


# ---------------------------------------------------------------------------------------------------------- FedEnsemble
def test_fedensemble_sums_the_logits_of_the_models_that_clients_hold(switches, monkeypatch):
    """After training and before the next broadcast: the cohort's just-trained models, and the last broadcast for all others."""
    home, text = settle("strategy=fedensemble", switches)
    grid, kept, original = LocalGrid(6, text), [], home.strategy.aggregate
    monkeypatch.setattr(home.strategy, "aggregate", lambda server, state, updates, number: (
        kept.append((state, updates)), original(server, state, updates, number))[1])  # fmt: skip
    result = home.strategy.start(grid, num_rounds=3)
    before, updates = kept[-1]
    memories = {client: serialization.from_record(record) for client, record in grid.memory.items()}
    x, total = home.test.images(torch.arange(50)), 0
    trained = {u.client: u.state["model"] for u in updates}
    assert 0 < len(trained) < 6 and any(client in memories for client in range(6) if client not in trained)
    for client in range(6):
        model = deepcopy(home.model)
        statistics_ = memories.get(client, {}).get("local", {})
        model.load_state_dict({**home.initial, **trained.get(client, before["model"]), **statistics_})
        total = total + model.eval()(x).logits.detach()
    server = replace(home.federation().server, memories=memories)
    ensemble = home.strategy.client_ensemble(server, serialization.from_record(result.arrays))
    with torch.no_grad():
        assert_close(ensemble(x).logits, total)
    assert not same(before["model"], serialization.from_record(result.arrays)["model"])


def test_fedensemble_s_state_holds_the_members_of_the_last_round_alone():
    ran = run("strategy=fedensemble")
    members = {int(part.removeprefix("member-")) for part in ran.state if part.startswith("member-")}
    assert sorted(members) == ran.home.strategy.cohort(range(6), 3)
    assert ran.home.strategy.broadcast_parts == ("model",)


# --------------------------------------------------------------------------------------------------------------- purity
def material(name: str, *overrides: str, number: int = 3):
    """``number`` clients in round 3, after two rounds: their steps with draws, what they begin from, and their memories."""
    ran = run(f"strategy={name}", *options(name), "rounds=2", "clients_per_round=6", *overrides)
    strategy, shared, parts = ran.home.strategy, {p: ran.state[p] for p in ran.home.strategy.broadcast_parts}, []
    for client in range(number):
        site, own = ran.home.client(client, 3), ran.memories[client]
        batches = site.batches()
        batches = list(batches.with_drawn(strategy.prepare_batches(site, batches, shared, own, 3)))
        parts.append((batches, strategy.initial_weights(site, shared, own), own))
    return ran.home, strategy, shared, parts


def frozen(tree):
    return {key: frozen(value) if isinstance(value, dict) else value.clone() for key, value in tree.items()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_loss_is_pure(name):
    home, strategy, shared, [(batches, start, own)] = material(name, number=1)
    model = deepcopy(home.model).train()
    model.load_state_dict(start)
    before = frozen({"shared": shared, "own": own, "drawn": batches[0].drawn})
    attributes, state = dict(vars(strategy)), torch.get_rng_state()
    (first, metrics), (second, again) = (strategy.loss(FunctionalModel(model), batches[0], shared, own) for _ in range(2))
    assert torch.equal(first, second) and same(metrics, again) and first.shape == ()
    assert same({"shared": shared, "own": own, "drawn": batches[0].drawn}, before)
    assert vars(strategy) == attributes and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_loss_does_not_depend_on_the_order_of_the_batch(name):
    home, strategy, shared, [(batches, start, own)] = material(name, "precision=float64", number=1)
    model, batch = deepcopy(home.model).train(), batches[0]
    order = torch.arange(len(batch.y)).flip(0)
    drawn = {key: value[order] if key == "latent" else value for key, value in batch.drawn.items()}
    model.load_state_dict(start)
    value, metrics = strategy.loss(FunctionalModel(model), batch, shared, own)
    other, others = strategy.loss(FunctionalModel(model), Batch(batch.x[order], batch.y[order], drawn), shared, own)
    assert_close({"": other, **others}, {"": value, **metrics}, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_loss_of_stacked_clients_is_each_client_s(name):
    """Under vmap over three clients: values, metrics and gradients as one by one."""
    home, strategy, shared, parts = material(name, "model=mlp", "precision=float64", "partition.alpha=1000")
    names = [name for name, _ in home.model.named_parameters()]

    def stack(trees):
        first = trees[0]
        return {key: (stack if isinstance(first[key], dict) else torch.stack)([tree[key] for tree in trees]) for key in first}

    def loss(weights, x, y, drawn, own):
        value, metrics = strategy.loss(FunctionalModel(home.model, weights), Batch(x, y, drawn), shared, own)
        return value, (value, metrics)

    batches, starts, owns = ([part[i] for part in parts] for i in range(3))
    starts = [{key: value + k / 10 for key, value in start.items()} for k, start in enumerate(starts)]
    x, y = (torch.stack([getattr(steps[0], name) for steps in batches]) for name in ("x", "y"))
    together = torch.func.vmap(torch.func.grad(loss, has_aux=True))
    gradients, (values, metrics) = together(stack(starts), x, y, stack([steps[0].drawn for steps in batches]), stack(owns))
    for k, (start, own) in enumerate(zip(starts, owns)):
        model = deepcopy(home.model).train()
        model.load_state_dict(start)
        value, alone = strategy.loss(FunctionalModel(model), batches[k][0], shared, own)
        assert_close(values[k], value.detach(), rtol=1e-12, atol=1e-12)
        for key, metric in alone.items():
            assert_close(metrics[key][k], metric.detach(), rtol=1e-12, atol=1e-12)
        for key, gradient in zip(names, torch.autograd.grad(value, list(model.parameters()))):
            assert_close(gradients[key][k], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STRATEGIES)
def test_memories_have_the_same_keys_shapes_and_types_for_every_client_and_round(name):
    """So that a cohort can be stacked, those who never trained among the others."""
    ran = run(f"strategy={name}", *options(name))
    trees = [ran.home.strategy._new_client_state(ran.home.client(k, 1)) for k in range(2)] + list(ran.memories.values())
    forms = [{name: (value.shape, value.dtype) for name, value in serialization.flatten(tree).items()} for tree in trees]
    assert len(forms) > 3 and all(form == forms[0] for form in forms)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_writes_into_nothing_it_is_given(name):
    ran = run(f"strategy={name}", *options(name))
    strategy, server = ran.home.strategy, ran.home.federation().server
    shared, own = {part: ran.state[part] for part in strategy.broadcast_parts}, ran.memories[min(ran.memories)]
    before = frozen({"state": ran.state, "own": own})
    update, kept = strategy.train(ran.home.client(min(ran.memories), 4), shared, own, 4)
    strategy.aggregate(server, ran.state, [update], 4)
    strategy.evaluate(ran.home.client(min(ran.memories), 4, testing=True), shared, own, 100)
    assert same({"state": ran.state, "own": own}, before) and not same(kept, own)


# --------------------------------------------------------------------------------------------- every strategy of conf/
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_s_run_is_the_golden_one(name):
    found, expected = golden.figures(name), golden.read(name)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-10, abs=1e-300), f"{name}: {key}; meant? then: {golden.COMMAND}"


def test_there_is_no_golden_file_without_its_strategy():
    assert sorted(path.stem for path in golden.FOLDER.glob("*.json")) == STRATEGIES


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_learns(name):
    """Two rounds are enough to do better than guessing, on the clients' own shards."""
    ran = run(f"strategy={name}", *options(name), "local_steps=25", "rounds=2", "clients_per_round=6", "optimizer.lr=0.1")
    shared = {part: ran.state[part] for part in ran.home.strategy.broadcast_parts}
    scores = [ran.home.strategy.evaluate(ran.home.client(k, 2, testing=True), shared, ran.memories[k], 100) for k in range(6)]
    assert sum(int(s.correct.sum()) for s in scores) / sum(int(s.total.sum()) for s in scores) > 0.3
    if (model := ran.home.strategy.global_model(replace(ran.home.federation().server, memories=ran.memories), ran.state)) is not None:
        assert isinstance(model, nn.Module) and not model.training
        assert evaluate(model, ran.home.test, 1000, 10).accuracy > 0.2
