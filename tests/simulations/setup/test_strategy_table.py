"""The properties that strategies declare are true."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fedkd.server_distillation import ServerDistillation
from fedkd.strategy import Strategy
from fedkd.two_networks import TwoNetworks
from fedkd.types import State, Update, flatten
from simulations.reports.tables.predictions import client_test
from simulations.setup import strategy_table
from tests.small_runs import STRATEGIES, small_run, small_simulation, strategy_overrides

SHARED_HEADS = (
    "fedavg", "fedbn", "feddistill", "feddyn", "fedensemble", "fedgen", "fedgen_paper", "fedgkd", "fedlc", "fednova", "fedntd", "fedprox",
    "fedsam", "moon", "scaffold",
)  # fmt: skip
"""Strategies whose clients may have different architectures if they share their heads alone."""


def checked_names() -> list[str]:
    assert strategy_table.strategy_names() == STRATEGIES
    return STRATEGIES


def updates_of_second_round(name: str) -> tuple:
    """A strategy, its server in round 2, its state, and the updates of three clients, with equal numbers of examples."""
    ran = small_run(f"strategy={name}", *strategy_overrides(name), "precision=float64", "rounds=1", "clients_per_round=3")
    strategy, simulation = ran.simulation.strategy, ran.simulation
    broadcast = {part: ran.state[part] for part in strategy.broadcast_parts}
    updates = [strategy.train(simulation.client(k, 2), broadcast, ran.client_states.get(k), 2)[0] for k in range(3)]
    server = replace(simulation.federation().server, seed=simulation.seed / "round" / 2 / "server")
    return strategy, server, ran.state, [replace(update, num_examples=10) for update in updates]


def mask_updates(updates: list[Update]) -> list[Update]:
    """Updates with random masks that leave the sum over clients unchanged. Integers are not masked."""
    random = torch.Generator().manual_seed(0)

    def noise(value: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(value.shape, generator=random, dtype=torch.float64) / 1000  # variances stay positive
        return drawn.to(value.dtype) if value.is_floating_point() else torch.zeros_like(value)

    masks = [{part: {key: noise(v) for key, v in tensors.items()} for part, tensors in updates[0].state.items()} for _ in updates]
    total = {part: {key: sum(mask[part][key] for mask in masks) / len(updates) for key in masks[0][part]} for part in masks[0]}

    def add_mask(state: State, mask: State) -> State:
        return {
            part: {
                key: value + mask[part][key] - total[part][key] if value.is_floating_point() else value for key, value in tensors.items()
            }
            for part, tensors in state.items()
        }

    return [replace(update, state=add_mask(update.state, mask)) for update, mask in zip(updates, masks)]


def state_after(strategy, server, state, updates) -> dict[str, torch.Tensor]:
    state, _ = strategy.aggregate(server, state, updates, 2)
    state, _ = strategy.server_training(server, state, updates, 2)
    return flatten(state)


@pytest.mark.parametrize("name", checked_names())
def test_secure_aggregation(name):
    strategy, server, state, updates = updates_of_second_round(name)
    if type(strategy).decompress is not Strategy.decompress:  # compressed models have unlike shapes, so that no mask fits
        assert not strategy.secure_aggregation
        return
    plain, masked = state_after(strategy, server, state, updates), state_after(strategy, server, state, mask_updates(updates))
    assert plain.keys() == masked.keys()
    equal = all(torch.allclose(masked[key].double(), value.double(), rtol=1e-9, atol=1e-9) for key, value in plain.items())
    assert equal == strategy.secure_aggregation


@pytest.mark.parametrize("name", checked_names())
def test_broadcast_and_update_parts(name):
    """The parts and keys of broadcast and update in the table are those of a run."""
    ran = small_run(f"strategy={name}", *strategy_overrides(name), "rounds=2")
    strategy, simulation = ran.simulation.strategy, ran.simulation
    broadcast = {part: ran.state[part] for part in strategy.broadcast_parts}
    update, _ = strategy.train(simulation.client(0, 3), broadcast, ran.client_states.get(0), 3)
    down, up = strategy_table.round_traffic(name)

    def keys(state):
        return {part: (strategy.decompress(tensors) if part == "model" else tensors).keys() for part, tensors in state.items()}

    assert keys(down) == keys(broadcast) and keys(up) == keys(update.state)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_a_client_is_tested_with_follows_from_the_strategy(name):
    """A strategy that tests another prediction, trains before the test, or broadcasts no model is said to do so."""
    strategy = strategy_table.shipped_strategy(name)
    kind = type(strategy)
    text = client_test({"strategy": {"_target_": f"{kind.__module__}.{kind.__name__}", **vars(strategy)}})
    fine_tuned = kind.personalization is not Strategy.personalization and strategy.finetune_steps > 0
    assert ("fine-tuned" in text) == fine_tuned
    own = kind.predict_client is not Strategy.predict_client or "model" not in strategy.broadcast_parts
    own = own or strategy.shared_layers != "all" or strategy.batchnorm == "private"
    assert ("its own" in text or "private" in text) == own
    assert (text == "the global model") == (not own and strategy.clients_evaluate)


def test_bytes_of_fedavg():
    """26,434 parameters of four bytes each. BatchNorm statistics are not sent."""
    down, up = strategy_table.round_traffic("fedavg")
    assert strategy_table.num_bytes(down) == strategy_table.num_bytes(up) == 26_434 * 4


@pytest.mark.parametrize("name", checked_names())
def test_needs_public_data(name):
    overrides = [option for option in strategy_overrides(name) if not option.startswith("public_data")]
    if strategy_table.shipped_strategy(name).needs_public_data:
        with pytest.raises(ValueError, match=rf"^public_data must be a data set for strategy {name}, which distills on public data"):
            small_simulation(f"strategy={name}", *overrides)
    else:
        small_simulation(f"strategy={name}", *overrides)


@pytest.mark.parametrize("name", checked_names())
def test_model_heterogeneity(name):
    heterogeneity = strategy_table.model_heterogeneity(name)
    assert (heterogeneity == "head only") == (name in SHARED_HEADS)
    head = ("strategy.shared_layers=head",) if heterogeneity == "head only" else ()
    overrides = (f"strategy={name}", *strategy_overrides(name), "model=heterogeneous", "rounds=2")
    if heterogeneity in ("none", "head only"):
        with pytest.raises(
            ValueError,
            match=r"^model must be one network .* got cnn_small, cnn_wide, mlp; .*feddistill_logits, fedgen_head, fedgh, fedkd, .*fml",
        ):
            small_simulation(*overrides)
    if heterogeneity != "none":
        ran = small_run(*overrides, *head, "clients_per_vmap=2")
        assert len({network.name for network in ran.simulation.networks}) == 3
        model = ran.simulation.strategy.global_model(ran.simulation.federation().server, ran.state)
        assert (model is not None) == isinstance(ran.simulation.strategy, ServerDistillation | TwoNetworks)
    if heterogeneity in ("same embedding size", "head only"):
        with pytest.raises(ValueError, match=r"^model\.networks must have the same embedding size.*cnn_small 32, cnn_wide 16, mlp 32"):
            small_simulation(*overrides, *head, "model.networks.cnn_wide.embedding_size=16")
    if heterogeneity == "any":
        small_simulation(*overrides, "model.networks.cnn_wide.embedding_size=16")


@pytest.mark.parametrize("name", SHARED_HEADS)
def test_shared_heads(name):
    ran = small_run(f"strategy={name}", *strategy_overrides(name), "strategy.shared_layers=head", "rounds=2")
    assert all(key.startswith("head.") for key in ran.state["model"])
    client_state = ran.client_states[min(ran.client_states)]
    assert {key for key in ran.simulation.initial if not key.startswith("head.")} == set(client_state["local"])
    moved = [
        key
        for key, value in client_state["local"].items()
        if value.is_floating_point() and not torch.equal(value, ran.simulation.initial[key])
    ]
    assert any("weight" in key for key in moved), "local parameters are trained"


def test_fedgen_with_shared_heads_has_fedavg_as_limit():
    off = ("strategy.generator_steps=4", "strategy.alpha=0", "strategy.beta=0")
    actual, fedavg = (
        small_run("strategy=fedgen", *off, "strategy.shared_layers=head"),
        small_run("strategy=fedavg", "strategy.shared_layers=head"),
    )
    assert_close(actual.state["model"], fedavg.state["model"], rtol=0, atol=0)
    for client, client_state in fedavg.client_states.items():
        assert_close(actual.client_states[client]["local"], client_state["local"], rtol=0, atol=0)
