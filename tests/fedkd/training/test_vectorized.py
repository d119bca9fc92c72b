"""Clients trained together equal clients trained one after the other, in float64 to 1e-12, including BatchNorm statistics."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from fedkd.training.optimizers import ClippedSGD
from fedkd.training.vectorized_layers import trains_alone
from fedkd.types import flatten
from tests.small_runs import LOCAL_TRAININGS, small_run, small_simulation, strategy_overrides

MODELS = {"fedgen_cnn": [], "mlp": [], "pooled": ["model=fedgen_cnn", "model.pool=true", "model.widths=[4]"]}

OTHER = ("fedavg", "fedgen", "fedkd", "moon", "scaffold")
"""What a strategy adds to the loss does not depend on the layers of the model; these are tested with all of :data:`MODELS`."""


def six_clients(name: str, *overrides: str, **changes):
    """All six clients in round 3, of which the last trains for the first time, with broadcast and client states."""
    ran = small_run(
        f"strategy={name}", *strategy_overrides(name), "rounds=2", "clients_per_round=5", "batch_size=8", "precision=float64", *overrides
    )
    clients = [replace(ran.simulation.client(k, 3), **changes) for k in range(6)]
    assert {min(8, len(client.data)) for client in clients} == {8}
    return (
        ran.simulation.strategy,
        clients,
        {part: ran.state[part] for part in ran.simulation.strategy.broadcast_parts},
        [ran.client_states.get(k) for k in range(6)],
    )


def assert_equal_alone(strategy, clients, broadcast, client_states, rtol: float = 1e-12) -> None:
    """Updates and new states of clients trained together equal those of clients trained alone."""
    together = strategy.train_clients(clients, broadcast, client_states, 3)
    for client, client_state, (update, new_state) in zip(clients, client_states, together):
        alone, expected_state = strategy.train(client, broadcast, client_state, 3)
        assert (update.client, update.num_examples) == (alone.client, alone.num_examples)
        assert update.metrics == pytest.approx(alone.metrics, rel=rtol, abs=rtol)
        for left, right in ((update.state, alone.state), (new_state, expected_state)):
            left, right = flatten(left), flatten(right)
            assert left.keys() == right.keys()
            for key in right:
                assert_close(left[key], right[key], rtol=rtol, atol=rtol, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(
    ("name", "model"), [*((name, "fedgen_cnn") for name in LOCAL_TRAININGS), *((name, m) for name in OTHER for m in ("mlp", "pooled"))]
)
def test_clients_trained_together_equal_clients_trained_alone(name, model):
    assert_equal_alone(*six_clients(name, *(MODELS[model] or [f"model={model}"])))


def test_clients_have_their_own_learning_rates():
    """After two rounds, last_participation gives at least two rates. Also with momentum and weight decay."""
    strategy, clients, broadcast, client_states = six_clients("fedavg", "strategy.lr_decay=0.5")
    assert len({strategy.lr_factor(state or strategy._new_client_state(c), 3) for c, state in zip(clients, client_states)}) > 1
    assert_equal_alone(strategy, clients, broadcast, client_states)
    heavy = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
    assert_equal_alone(strategy, [replace(client, optimizer=heavy, lr=0.05) for client in clients], broadcast, client_states)


CLIPPED = partial(ClippedSGD, lr=0.05, momentum=0.9, weight_decay=0.01, max_norm=0.5)


@pytest.mark.parametrize(
    "optimizer", [partial(torch.optim.SGD, lr=0.05, momentum=0.9), partial(torch.optim.Adam, lr=0.001, eps=1e-4), CLIPPED]
)
def test_clients_with_fewer_steps_are_removed(optimizer):
    """Adam has an eps above rounding errors: it divides by the gradient of a bias before BatchNorm, which is zero except for rounding."""
    strategy, clients, broadcast, client_states = six_clients("fedgen")
    steps = [3, 1, 4, 1, 5, 2]
    assert_equal_alone(
        strategy,
        [replace(c, num_steps=n, optimizer=optimizer, lr=optimizer.keywords["lr"]) for c, n in zip(clients, steps)],
        broadcast,
        client_states,
    )


def test_one_step_in_float32_agrees():
    strategy, clients, broadcast, client_states = six_clients("fedgen", "precision=float32", num_steps=1)
    assert_equal_alone(strategy, clients, broadcast, client_states, rtol=1e-6)


@pytest.mark.parametrize("name", LOCAL_TRAININGS)
def test_whole_rounds_agree(name):
    """Two rounds, including the server."""
    overrides = (f"strategy={name}", *strategy_overrides(name), "rounds=2", "clients_per_round=5", "batch_size=8", "precision=float64")
    alone, together = small_run(*overrides), small_run(*overrides, "clients_per_vmap=3")
    for left, right in ((together.state, alone.state), *zip(together.client_states.values(), alone.client_states.values())):
        for (key, value), other in zip(flatten(left).items(), flatten(right).values()):
            assert_close(value, other, rtol=1e-11, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
    assert together.client_states.keys() == alone.client_states.keys()


def test_chunks_depend_on_batch_size_and_number_of_steps():
    """Clients with smaller batches form chunks of their own, clients with more steps come first, and a subset is divided likewise."""
    simulation, _ = small_simulation(
        "num_clients=8", "local_steps=null", "local_epochs=1", "drop_last=true", "partition.alpha=0.3", "batch_size=64"
    )
    chunks = simulation.split_into_chunks(range(8), 2, 1)
    assert sorted(client for chunk in chunks for client in chunk) == list(range(8)) and max(map(len, chunks)) == 2
    for chunk in chunks:
        assert len({simulation.workload(client)[0] for client in chunk}) == 1
        assert [simulation.workload(c)[1] for c in chunk] == sorted((simulation.workload(c)[1] for c in chunk), reverse=True)
    assert len({simulation.workload(client)[0] for client in range(8)}) > 1, "some clients are smaller than a batch"
    assert simulation.split_into_chunks(chunks[-1] + chunks[0], 2, 1) == [chunks[0], chunks[-1]]
    assert simulation.split_into_chunks([3, 1], 1, 1) == [[3], [1]]


def test_networks_with_dropout_have_randomness():
    assert trains_alone(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)))
    assert not trains_alone(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.0)))


def test_clients_trained_together_change_and_differ():
    strategy, clients, broadcast, client_states = six_clients("fedavg")
    weights = [update.state["model"]["head.weight"] for update, _ in strategy.train_clients(clients, broadcast, client_states, 3)]
    assert not torch.equal(weights[0], broadcast["model"]["head.weight"]) and not torch.equal(weights[0], weights[1])
    assert clients[0].num_steps > 1


def test_an_infinite_loss_is_an_error_that_names_the_steps():
    strategy, clients, broadcast, client_states = six_clients("fedavg", lr=1e200)
    with pytest.raises(FloatingPointError, match="after 4 steps"):
        strategy.train_clients(clients, broadcast, client_states, 3)
