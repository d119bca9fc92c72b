"""FedLC, FedNova and FedDyn against public code and constants; server optimizers and aggregators in whole runs."""

from dataclasses import fields

import pytest
import torch
from torch import nn

from fedkd.errors import ConfigError
from fedkd.federation import serialization
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.optimizers import effective_steps
from fedkd.types import Output, Update
from simulations.engine.local_engine import LocalGrid
from strategies.fednova import scaled
from tests.public_code import public_code
from tests.small_runs import same_tensors, small_run, small_simulation
from tests.strategies.strategy_tools import SWITCHES


class Logits(nn.Module):
    """A network whose logits are its parameter."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x):
        return Output(self.logits, self.logits)


# --------------------------------------------------------------------------------------------------------------------- FedLC
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_fedlc_of_public_code(tau):
    arrays, expected = public_code("calibrate"), public_code("fedlc")
    strategy, _ = small_strategy("fedlc", tau=tau)
    margins = tau * arrays["counts"].double().clamp(min=1e-8).pow(-0.25)
    network = Logits(arrays["logits"])
    loss, _ = strategy.loss(FunctionalModel(network), Batch(torch.zeros(9), arrays["labels"], {"margins": margins}), {}, {})
    (gradient,) = torch.autograd.grad(loss, [network.logits])
    assert torch.allclose(loss, expected[f"loss_tau{tau}"], atol=1e-12) and torch.allclose(gradient, expected[f"grad_tau{tau}"], atol=1e-12)


def small_strategy(name, **fields):
    """A strategy with shared switches and these fields, and a small simulation of it."""
    words = [f"strategy.{key}={value}" for key, value in fields.items()]
    simulation, _ = small_simulation(f"strategy={name}", "precision=float64", *words)
    return simulation.strategy, simulation


def test_margins_of_fedlc_are_those_of_the_client_s_labels():
    simulation, _ = small_simulation("strategy=fedlc", "precision=float64", "strategy.tau=2.0", "partition.alpha=0.1")
    strategy = simulation.strategy
    client = next(client for client in (simulation.client(k, 1) for k in range(6)) if len(client.data.y.unique()) < 10)
    counts = torch.bincount(client.data.y, minlength=10)
    drawn = strategy.prepare_batches(client, client.batches(), {}, {}, 1)["margins"]
    assert drawn.shape == (4, 10) and torch.equal(drawn[0], 2.0 * counts.double().clamp(min=1e-8) ** -0.25)
    assert counts.min() == 0 and drawn[0].max() == pytest.approx(200)


# ------------------------------------------------------------------------------------------------------------------- FedNova
@pytest.mark.parametrize(("momentum", "name"), [(0.0, "rho0"), (0.9, "rho9")])
def test_fednova_of_public_code(momentum, name):
    arrays = public_code("fednova")
    steps = [effective_steps(int(number), momentum) for number in arrays["steps"]]
    assert steps == pytest.approx(arrays[f"normalisers_{name}"].tolist(), rel=1e-12)
    weights = (arrays["sizes"] / arrays["sizes"].sum()).tolist()
    mean, state, names = sum(p * a for p, a in zip(weights, steps)), {"model": {"w": arrays["start"]}}, frozenset({"w"})
    models = [scaled({"model": {"w": w}}, state, names, mean / a)["model"]["w"] for w, a in zip(arrays["clients"], steps)]
    after = sum(p * w for p, w in zip(weights, models))
    assert torch.allclose(after, arrays[f"after_{name}"], atol=1e-12)


def test_stragglers_send_their_number_of_steps():
    ran = small_run("strategy=fednova", "systems.straggler_rate=0.6", "systems.straggler_min_fraction=0.2")
    assert min(metrics["effective_steps"] for metrics in ran.metrics.values()) < 4


# -------------------------------------------------------------------------------------------------------------------- FedDyn
class Linear(nn.Module):
    """A linear classifier."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return Output(self.head(x), x)


def vector(model):
    """The parameters as one vector: the weight row by row, then the bias."""
    return torch.cat([model["head.weight"].flatten(), model["head.bias"]])


def tensors(values):
    """The inverse of :func:`vector`."""
    return {"head.weight": values[:15].view(3, 5).clone(), "head.bias": values[15:].clone()}


def test_feddyn_of_public_code():
    """Three rounds of four clients of unlike sizes, full batches, two epochs, learning rate 0.1, weight decay 0.001, alpha 0.1."""
    arrays = public_code("feddyn")
    data = [(arrays[f"x{k}"], arrays[f"y{k}"]) for k in range(4)]
    strategy, simulation = small_strategy("feddyn", alpha=0.1, correction=1.0)
    server = simulation.federation().server
    object.__setattr__(server, "num_clients", 4)
    object.__setattr__(server, "model", Linear())
    mean_size, network = sum(len(y) for _, y in data) / 4, Linear()
    zeros = {key: torch.zeros_like(value) for key, value in tensors(arrays["start"]).items()}
    state, changes = {"model": tensors(arrays["start"]), "changes": zeros}, [dict(zeros) for _ in range(4)]
    for number, selected in enumerate(arrays["selected"]):
        updates = []
        for client in torch.nonzero(selected).flatten().tolist():
            x, y = data[client]
            batch = Batch(x, y, {"alpha": torch.tensor(0.1 * mean_size / len(y))})
            own = {key: value.clone().requires_grad_() for key, value in state["model"].items()}
            optimizer = torch.optim.SGD(own.values(), lr=0.1, weight_decay=1e-3)
            for _ in range(2):
                optimizer.zero_grad()
                strategy.loss(FunctionalModel(network, own), batch, state, {"changes": changes[client]})[0].backward()
                optimizer.step()
            trained = {key: value.detach() for key, value in own.items()}
            changes[client] = {key: changes[client][key] + trained[key] - state["model"][key] for key in trained}
            updates.append(Update(client, len(y), "linear", {"model": trained}))
        server = type(server)(**{**vars(server), "initial": state["model"]})
        state, _ = strategy.aggregate(server, state, updates, number + 1)
        assert torch.allclose(vector(state["model"]), arrays["broadcast"][number], atol=2e-5)
        assert torch.allclose(vector(state["mean"]), arrays["mean_of_selected"][number], atol=2e-5)
    for client in range(4):
        assert torch.allclose(vector(changes[client]), arrays["corrections"][client], atol=2e-5)


def test_feddyn_scales_alpha_by_the_number_of_examples():
    strategy, simulation = small_strategy("feddyn", alpha=0.1)
    clients = [simulation.client(k, 1) for k in range(6)]
    found = [strategy.prepare_batches(client, client.batches(), {}, {}, 1)["alpha"][0].item() for client in clients]
    sizes = [len(client.data) for client in clients]
    assert found == pytest.approx([0.1 * sum(sizes) / 6 / size for size in sizes])


# -------------------------------------------------------------------------------------------------------------------- FedSAM
class Weight(nn.Module):
    """A linear classifier without bias."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 5, dtype=torch.float64))

    def forward(self, x):
        return Output(x @ self.weight.T, x)


@pytest.mark.parametrize(("rho", "adaptive", "name"), [(0.1, False, "sam_rho0.1"), (0.7, True, "asam_rho0.7"), (0.0, False, "sam_rho0.0")])
def test_fedsam_of_public_code(rho, adaptive, name):
    """One step with learning rate 0.1."""
    arrays = public_code("fedsam")
    strategy, _ = small_strategy("fedsam", rho=rho, adaptive=str(adaptive).lower(), eta=0.2)
    weight = arrays["weight"].clone().requires_grad_()
    model, batch = FunctionalModel(Weight(), {"weight": weight}), Batch(arrays["x"], arrays["labels"])
    gradient = model.gradient(lambda same: torch.nn.functional.cross_entropy(same(batch.x).logits, batch.y))
    climbed = weight + strategy.move(model.parameters(), gradient)["weight"]
    assert torch.allclose(climbed, arrays[f"{name}_climbed"], atol=1e-12)
    (step,) = torch.autograd.grad(strategy.loss(model, batch, {}, {})[0], [weight])
    assert torch.allclose(weight - 0.1 * step, arrays[name], atol=1e-12)


def test_the_gradient_of_fedsam_leaves_batchnorm_statistics_alone():
    strategy, simulation = small_strategy("fedsam", rho=0.1)
    network, client = simulation.client(0, 1).model.train(), simulation.client(0, 1)
    tensors = {key: value.clone() for key, value in network.state_dict().items()}
    before = {key: value.clone() for key, value in tensors.items()}
    batch = next(iter(client.batches()))
    FunctionalModel(network, tensors).gradient(lambda model: model(batch.x).logits.square().mean())
    assert same_tensors(tensors, before)
    strategy.loss(FunctionalModel(network, tensors), batch, {}, {})
    assert not same_tensors(tensors, before), "the second pass counts"


# ------------------------------------------------------------------------------------ aggregators and server optimizers in runs
RULES = {
    "adam": ("server_optimizer=adam",),
    "momentum": ("server_optimizer=momentum",),
    "yogi": ("server_optimizer=yogi", "strategy=scaffold"),
    "adagrad": ("server_optimizer=adagrad", "strategy=fedgen", "strategy.generator_steps=2"),
    "median": ("aggregator=median",),
    "krum": ("aggregator=krum", "aggregator.num_malicious=0", "strategy=fedensemble"),
    "clipping and momentum": ("aggregator=centered_clipping", "aggregator.radius=0.1", "server_optimizer=momentum", "strategy=fedprox"),
}


@pytest.mark.parametrize("name", RULES)
def test_an_interrupted_run_continues_with_what_the_server_keeps(name):
    """The moments of server optimizers and the center of clipping are part of the checkpoint."""
    words = ("strategy=fedavg", *RULES[name])
    whole = small_run(*words)
    simulation, text = small_simulation(*words)
    first = LocalGrid(6, text)
    half = simulation.strategy.start(first, num_rounds=2)
    second = LocalGrid(6, text)
    second.client_states = dict(first.client_states)
    again, _ = small_simulation(*words)
    rest = again.strategy.start(second, half.arrays, num_rounds=3, start_round=3)
    state = serialization.from_record(rest.arrays)
    assert same_tensors(state, whole.state)
    assert not same_tensors(state["model"], small_run("strategy=fedavg", *(w for w in words if w.startswith("strategy"))).state["model"])


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["aggregator=krum"], r"aggregator\.num_malicious must be a number f with 2 f \+ 2 < 3"),
        (["aggregator=trimmed_mean", "aggregator.num_trimmed=2"], r"aggregator\.num_trimmed must leave one of the 3 clients"),
        (["strategy=fedproto", "server_optimizer=adam"], "server_optimizer must be the default with strategy fedproto"),
        (["strategy=fedmd", "public_data=held_out", "aggregator=median"], "aggregator must be the default with strategy fedmd"),
        (["strategy=fedgh", "server_optimizer=momentum"], "server_optimizer must be the default with strategy fedgh"),
        (["strategy=fednova", "optimizer=adam"], "optimizer must be SGD without nesterov"),
        (["strategy=fedbn", "strategy.batchnorm=local"], "strategy.batchnorm must be private"),
        (["strategy=fedrep", "strategy.shared_layers=all"], "strategy.shared_layers must be body"),
        (["strategy=fedper", "strategy.shared_layers=head"], "strategy.shared_layers must not be head"),
    ],
)
def test_what_does_not_fit_is_refused(words, rule):
    with pytest.raises(ConfigError, match=f"^{rule}"):
        small_simulation("strategy=fedavg", *words)


def test_switches_of_tools_are_those_of_strategies():
    assert SWITCHES.keys() == {field.name for field in fields(Strategy)}
