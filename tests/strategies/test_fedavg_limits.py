"""FedAvg as a limit: strategies with neutral parameters, and one client against a plain training loop."""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from fedkd.seed import Seed
from fedkd.tensor_ops import channels_last
from tests.small_runs import same_tensors, small_run, strategy_overrides

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
    "fedbn": ("strategy=fedbn", "model=mlp"),
    "lg_fedavg": ("strategy=lg_fedavg", "strategy.shared_layers=all"),
    "fedper": ("strategy=fedper", "strategy.shared_layers=all"),
    "fedlc": ("strategy=fedlc", "strategy.tau=0"),
    "fedsam": ("strategy=fedsam", "strategy.rho=0"),
    "fednova": ("strategy=fednova",),
    "feddyn": ("strategy=feddyn", "strategy.alpha=0", "strategy.correction=0"),
    "server momentum": ("strategy=fedavg", "server_optimizer=momentum", "server_optimizer.momentum=0"),
    "feddf": ("strategy=feddf", *strategy_overrides("feddf"), "strategy.steps=0"),
    "dense": ("strategy=dense", *strategy_overrides("dense"), "strategy.epochs=0"),
    "fedftg": ("strategy=fedftg", *strategy_overrides("fedftg"), "strategy.iterations=0"),
    "dfrd": ("strategy=dfrd", *strategy_overrides("dfrd"), "strategy.iterations=0"),
    "coboosting": ("strategy=coboosting", *strategy_overrides("coboosting"), "strategy.epochs=0"),
}


FEDAVG_OVERRIDES = {
    "fedbn": ("model=mlp",),
    "feddyn": ("strategy.aggregation=uniform",),
    "feddf": ("strategy.batchnorm=averaged", "public_data=held_out"),
    **dict.fromkeys(("dense", "fedftg", "coboosting", "dfrd"), ("strategy.batchnorm=averaged",)),
}
"""Overrides of FedAvg with which a strategy is compared."""


AWAY = {
    "fedprox mu": (*NEUTRAL["fedprox"], "strategy.mu=0.5"),
    "fedprox weight_decay": (*NEUTRAL["fedprox"], "strategy.weight_decay=0.1"),
    "fedgen alpha": (*FEDGEN_OFF, "strategy.alpha=1"),
    "fedgen beta": (*FEDGEN_OFF, "strategy.beta=1"),
    "feddistill gamma": (*NEUTRAL["feddistill"], "strategy.gamma=1"),
    "fedgkd gamma": (*NEUTRAL["fedgkd"], "strategy.gamma=1"),
    "fedgkd gamma, buffer of one": (*NEUTRAL["fedgkd"], "strategy.gamma=1", "strategy.buffer=1"),
    "fedntd beta": (*NEUTRAL["fedntd"], "strategy.beta=1"),
    "moon mu": (*NEUTRAL["moon"], "strategy.mu=1", "clients_per_round=6"),
    "scaffold correction": (*NEUTRAL["scaffold"], "strategy.correction=1"),
    "scaffold server_lr": (*NEUTRAL["scaffold"], "strategy.server_lr=0.5"),
    "fedlc tau": (*NEUTRAL["fedlc"], "strategy.tau=1"),
    "fednova unequal steps": (*NEUTRAL["fednova"], "systems.straggler_rate=0.6", "systems.straggler_min_fraction=0.2"),
    "fedsam rho": (*NEUTRAL["fedsam"], "strategy.rho=0.5"),
    "fedsam adaptive": (*NEUTRAL["fedsam"], "strategy.rho=2.0", "strategy.adaptive=true"),
    "feddyn alpha": (*NEUTRAL["feddyn"], "strategy.alpha=1"),
    "feddyn correction": (*NEUTRAL["feddyn"], "strategy.correction=1"),
    "server momentum": (*NEUTRAL["server momentum"], "server_optimizer.momentum=0.9"),
    "server learning rate": (*NEUTRAL["server momentum"], "server_optimizer.lr=0.5"),
    "feddf steps": (*NEUTRAL["feddf"], "strategy.steps=2"),
    "dense epochs": (*NEUTRAL["dense"], "strategy.epochs=1"),
    "fedftg iterations": (*NEUTRAL["fedftg"], "strategy.iterations=1"),
    "dfrd iterations": (*NEUTRAL["dfrd"], "strategy.iterations=1"),
    "coboosting epochs": (*NEUTRAL["coboosting"], "strategy.epochs=1"),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_parameters_give_fedavg_bit_for_bit(name, protocol):
    actual, fedavg = small_run(*NEUTRAL[name], protocol), small_run("strategy=fedavg", protocol, *FEDAVG_OVERRIDES.get(name, ()))
    assert same_tensors(actual.state["model"], fedavg.state["model"])
    for client, client_state in fedavg.client_states.items():
        assert same_tensors({part: actual.client_states[client][part] for part in client_state}, client_state)
    assert [actual.metrics[r]["train_loss"] for r in (1, 2, 3)] == [fedavg.metrics[r]["train_loss"] for r in (1, 2, 3)]


@pytest.mark.parametrize("protocol", ["public_code"], indirect=True)
@pytest.mark.parametrize("name", AWAY)
def test_other_parameters_change_the_model(name, protocol):
    common = [option for option in AWAY[name] if not option.startswith(("strategy", "+strategy", "public_data", "server_optimizer"))]
    common += FEDAVG_OVERRIDES.get(name.split()[0], ())
    actual, fedavg = small_run(*AWAY[name], protocol).state["model"], small_run("strategy=fedavg", protocol, *common).state["model"]
    assert actual.keys() == fedavg.keys()
    assert all(not torch.equal(actual[key], fedavg[key]) for key in actual if actual[key].ndim > 1)


@pytest.mark.parametrize("name", ["fedgen", "feddistill", "fedgkd", "moon", "scaffold"])
def test_first_round_equals_fedavg(name, protocol):
    actual, fedavg = (
        small_run(f"strategy={name}", *strategy_overrides(name), protocol, "rounds=1"),
        small_run("strategy=fedavg", protocol, "rounds=1"),
    )
    assert same_tensors(actual.state["model"], fedavg.state["model"])
    assert not same_tensors(
        small_run(f"strategy={name}", *strategy_overrides(name), protocol).state["model"],
        small_run("strategy=fedavg", protocol).state["model"],
    )


def test_fedgen_paper_regularizes_the_first_round():
    actual = small_run("strategy=fedgen_paper", "rounds=1", "strategy.generator_steps=4")
    fedavg = small_run("strategy=fedavg", "protocol@strategy=paper", "rounds=1")
    assert not same_tensors(actual.state["model"], fedavg.state["model"])
    assert actual.simulation.strategy.batchnorm == "averaged" and actual.simulation.strategy.aggregation == "uniform"


@pytest.mark.parametrize("optimizer", ["optimizer.momentum=0.0", "optimizer.momentum=0.9"])
def test_one_client_is_central_sgd_bit_for_bit(protocol, optimizer):
    """A plain loop with a new order and new momentum in each round, and BatchNorm statistics that are kept."""
    ran = small_run("strategy=fedavg", protocol, optimizer, "num_clients=1", "clients_per_round=1", "rounds=4", "local_steps=5")
    data, config = ran.simulation.train.subset(ran.simulation.partition.train[0]), ran.simulation.config
    model = deepcopy(ran.simulation.model)
    model.load_state_dict(ran.simulation.initial)
    for weight in model.parameters():
        weight.data = channels_last(weight.data)
    for server_round in range(1, 5):
        lr = 0.01 * (0.99 ** max(server_round - 2, 0) if "public_code" in protocol else 1.0)
        stepper = torch.optim.SGD(model.parameters(), lr=lr, momentum=config.optimizer.momentum)
        random = (Seed(config.seed) / "round" / server_round / "client" / 0 / "order").torch()
        for index in torch.randperm(len(data), generator=random)[:80].split(16):
            stepper.zero_grad()
            F.cross_entropy(model.train()(data.images(index)).logits, data.y[index]).backward()
            stepper.step()
    final = {**ran.state["model"], **ran.client_states[0].get("local", {})}
    assert ("local" in ran.client_states[0]) == ("public_code" in protocol)
    assert same_tensors(final, dict(model.state_dict()))
