"""What strategies declare of themselves is so."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fedkd.types import State, Update, flatten
from simulations.setup import strategy_table
from tests.conftest import STRATEGIES, options, run, settle


def names() -> list[str]:
    assert strategy_table.names() == STRATEGIES
    return STRATEGIES


def updates(name: str) -> tuple:
    """A strategy after a round, its server, state, and the updates of the next round's clients, as if all had ten examples."""
    ran = run(f"strategy={name}", *options(name), "precision=float64", "rounds=1", "clients_per_round=3")
    strategy, home = ran.home.strategy, ran.home
    shared = {part: ran.state[part] for part in strategy.broadcast_parts}
    sent = [strategy.train(home.client(k, 2), shared, ran.memories.get(k), 2)[0] for k in range(3)]
    server = replace(home.federation().server, seed=home.seed / "round" / 2 / "server")
    return strategy, server, ran.state, [replace(update, num_examples=10) for update in sent]


def masked(sent: list[Update]) -> list[Update]:
    """The same sum of everything that is sent, and of no single client what it was; whole numbers by whole numbers."""
    random = torch.Generator().manual_seed(0)

    def noise(value: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(value.shape, generator=random, dtype=torch.float64) / 1000  # variances stay positive
        return drawn.to(value.dtype) if value.is_floating_point() else torch.zeros_like(value)

    masks = [{part: {key: noise(v) for key, v in tensors.items()} for part, tensors in sent[0].state.items()} for _ in sent]
    total = {part: {key: sum(mask[part][key] for mask in masks) / len(sent) for key in masks[0][part]} for part in masks[0]}

    def cover(state: State, mask: State) -> State:
        return {
            part: {
                key: value + mask[part][key] - total[part][key] if value.is_floating_point() else value for key, value in tensors.items()
            }
            for part, tensors in state.items()
        }

    return [replace(update, state=cover(update.state, mask)) for update, mask in zip(sent, masks)]


def after(strategy, server, state, sent) -> dict[str, torch.Tensor]:
    state, _ = strategy.aggregate(server, state, sent, 2)
    state, _ = strategy.server_training(server, state, sent, 2)
    return flatten(state)


@pytest.mark.parametrize("name", names())
def test_the_server_needs_sums_alone_where_it_says_so(name):
    strategy, server, state, sent = updates(name)
    plain, hidden = after(strategy, server, state, sent), after(strategy, server, state, masked(sent))
    assert plain.keys() == hidden.keys()
    same = all(torch.allclose(hidden[key].double(), value.double(), rtol=1e-9, atol=1e-9) for key, value in plain.items())
    assert same == strategy.secure_aggregation


@pytest.mark.parametrize("name", names())
def test_bytes_are_those_of_a_run(name):
    """Bytes up and down of the second round of a run on digits are those of what the strategy says is shared and what a client sends."""
    ran = run(f"strategy={name}", *options(name), "rounds=2")
    strategy, home = ran.home.strategy, ran.home
    shared = {part: ran.state[part] for part in strategy.broadcast_parts}
    update, _ = strategy.train(home.client(0, 3), shared, ran.memories.get(0), 3)
    down, up = strategy_table.traffic(name)
    assert down.keys() == shared.keys() and up.keys() == update.state.keys()
    assert {key for part in down.values() for key in part} == {key for part in shared.values() for key in part}
    assert {key for part in up.values() for key in part} == {key for part in update.state.values() for key in part}


def test_fedavg_s_bytes_are_its_network_s():
    """26,434 parameters of four bytes; statistics stay."""
    down, up = strategy_table.traffic("fedavg")
    assert strategy_table.size(down) == strategy_table.size(up) == 26_434 * 4


@pytest.mark.parametrize("name", names())
def test_needs_a_public_set_or_not(name):
    given = [option for option in options(name) if not option.startswith("public_data")]
    if strategy_table.strategy_of(name).needs_public_data:
        with pytest.raises(ValueError, match=rf"^public must be a public set, as strategy {name} distils on one"):
            settle(f"strategy={name}", *given)
    else:
        settle(f"strategy={name}", *given)


@pytest.mark.parametrize("name", names())
def test_works_with_unlike_networks_or_says_who_does(name):
    can = strategy_table.model_heterogeneity(name)
    head = ("strategy.shared_layers=head",) if can == "head only" else ()
    given = (f"strategy={name}", *options(name), "model=heterogeneous", "rounds=2")
    if can in ("none", "head only"):
        with pytest.raises(
            ValueError,
            match=r"^model must be one network .* got cnn_small, cnn_wide, mlp; .*feddistill_logits, fedgen_head, fedmd, fedproto",
        ):
            settle(*given)
    if can != "none":
        ran = run(*given, *head, "clients_per_vmap=2")
        assert len({network.name for network in ran.home.networks}) == 3
        assert ran.home.strategy.global_model(ran.home.federation().server, ran.state) is None
    if can in ("same embedding size", "head only"):
        with pytest.raises(ValueError, match=r"^model\.networks must have embeddings of one size.*cnn_small 32, cnn_wide 16, mlp 32"):
            settle(*given, *head, "model.networks.cnn_wide.embedding_size=16")
    if can == "any":
        settle(*given, "model.networks.cnn_wide.embedding_size=16")


@pytest.mark.parametrize("name", [name for name in names() if strategy_table.model_heterogeneity(name) == "head only"])
def test_with_heads_alone_nothing_else_travels(name):
    ran = run(f"strategy={name}", *options(name), "strategy.shared_layers=head", "rounds=2")
    assert all(key.startswith("head.") for key in ran.state["model"])
    own = ran.memories[min(ran.memories)]
    assert {key for key in ran.home.initial if not key.startswith("head.")} == set(own["local"])
    moved = [key for key, value in own["local"].items() if value.is_floating_point() and not torch.equal(value, ran.home.initial[key])]
    assert any("weight" in key for key in moved), "what stays is trained"


def test_heads_alone_at_alpha_and_beta_zero_are_fedavg_s():
    off = ("strategy.generator_steps=4", "strategy.alpha=0", "strategy.beta=0")
    ours, fedavg = run("strategy=fedgen", *off, "strategy.shared_layers=head"), run("strategy=fedavg", "strategy.shared_layers=head")
    assert_close(ours.state["model"], fedavg.state["model"], rtol=0, atol=0)
    for client, memory in fedavg.memories.items():
        assert_close(ours.memories[client]["local"], memory["local"], rtol=0, atol=0)
