"""Many clients at once are the same as one after the other, in double precision to 1e-12, BatchNorm statistics included."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from fedkd.training.vectorized_layers import has_randomness
from fedkd.types import flatten
from tests.small_runs import STRATEGIES, small_run, small_simulation, strategy_overrides

MODELS = {"fedgen_cnn": [], "mlp": [], "pooled": ["model=fedgen_cnn", "model.pool=true", "model.widths=[4]"]}


def cohort(name: str, *overrides: str, **changes):
    """All six clients in round 3, the last of them for the first time, and what they receive."""
    ran = small_run(f"strategy={name}", *strategy_overrides(name), "rounds=2", "clients_per_round=5", "batch_size=8", "precision=float64", *overrides)
    clients = [replace(ran.simulation.client(k, 3), **changes) for k in range(6)]
    assert {min(8, len(client.data)) for client in clients} == {8}
    return (
        ran.simulation.strategy,
        clients,
        {part: ran.state[part] for part in ran.simulation.strategy.broadcast_parts},
        [ran.client_states.get(k) for k in range(6)],
    )


def agree(strategy, clients, shared, owns, rtol: float = 1e-12) -> None:
    """Updates and memories of all clients, trained together, are those of each trained alone."""
    together = strategy.train_clients(clients, shared, owns, 3)
    for client, own, (update, kept) in zip(clients, owns, together):
        alone, memory = strategy.train(client, shared, own, 3)
        assert (update.client, update.num_examples) == (alone.client, alone.num_examples)
        assert update.metrics == pytest.approx(alone.metrics, rel=rtol, abs=rtol)
        for left, right in ((update.state, alone.state), (kept, memory)):
            left, right = flatten(left), flatten(right)
            assert left.keys() == right.keys()
            for key in right:
                assert_close(left[key], right[key], rtol=rtol, atol=rtol, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_cohort_is_each_client_alone(name, model):
    agree(*cohort(name, *(MODELS[model] or [f"model={model}"])))


def test_clients_of_a_cohort_have_learning_rates_of_their_own():
    """Two rounds in, last_participation gives at least two of them; momentum and weight decay on top."""
    strategy, clients, shared, owns = cohort("fedavg", "strategy.lr_decay=0.5")
    assert len({strategy.lr_factor(own or strategy._new_client_state(c), 3) for c, own in zip(clients, owns)}) > 1
    agree(strategy, clients, shared, owns)
    heavy = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
    agree(strategy, [replace(client, optimizer=heavy, lr=0.05) for client in clients], shared, owns)


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.05, momentum=0.9), partial(torch.optim.Adam, lr=0.001, eps=1e-4)])
def test_clients_leave_when_their_steps_are_done(optimizer):
    """Adam with an eps above the noise: the gradient of a bias before BatchNorm is zero but for rounding, and Adam divides by it."""
    strategy, clients, shared, owns = cohort("fedgen")
    steps = [3, 1, 4, 1, 5, 2]
    agree(
        strategy, [replace(c, num_steps=n, optimizer=optimizer, lr=optimizer.keywords["lr"]) for c, n in zip(clients, steps)], shared, owns
    )


def test_in_single_precision_one_step_agrees():
    strategy, clients, shared, owns = cohort("fedgen", "precision=float32", num_steps=1)
    agree(strategy, clients, shared, owns, rtol=1e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_rounds_agree(name):
    """Three whole rounds, server and all."""
    options_ = (f"strategy={name}", *strategy_overrides(name), "precision=float64", "clients_per_round=5", "batch_size=8")
    alone, together = small_run(*options_), small_run(*options_, "clients_per_vmap=3")
    for left, right in ((together.state, alone.state), *zip(together.client_states.values(), alone.client_states.values())):
        for (key, value), other in zip(flatten(left).items(), flatten(right).values()):
            assert_close(value, other, rtol=1e-11, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
    assert together.client_states.keys() == alone.client_states.keys()


def test_chunks_are_cut_by_batch_size_and_steps_alone():
    """Small clients, whose batches are smaller, train among themselves; those with more steps first; and a subset is cut alike."""
    simulation, _ = small_simulation("num_clients=8", "local_steps=null", "local_epochs=1", "partition.alpha=0.3", "batch_size=64")
    chunks = simulation.split_into_chunks(range(8), 2, 1)
    assert sorted(client for chunk in chunks for client in chunk) == list(range(8)) and max(map(len, chunks)) == 2
    for chunk in chunks:
        assert len({simulation.workload(client)[0] for client in chunk}) == 1
        assert [simulation.workload(c)[1] for c in chunk] == sorted((simulation.workload(c)[1] for c in chunk), reverse=True)
    assert len({simulation.workload(client)[0] for client in range(8)}) > 1, "there are clients smaller than a batch"
    assert simulation.split_into_chunks(chunks[-1] + chunks[0], 2, 1) == [chunks[0], chunks[-1]]
    assert simulation.split_into_chunks([3, 1], 1, 1) == [[3], [1]]


def test_networks_with_dropout_train_one_by_one():
    assert has_randomness(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)))
    assert not has_randomness(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.0)))


def test_a_cohort_trains():
    """The comparison is of something: weights move, and differ between clients."""
    strategy, clients, shared, owns = cohort("fedavg")
    weights = [update.state["model"]["head.weight"] for update, _ in strategy.train_clients(clients, shared, owns, 3)]
    assert not torch.equal(weights[0], shared["model"]["head.weight"]) and not torch.equal(weights[0], weights[1])
    assert clients[0].num_steps > 1


def test_a_loss_that_is_no_number_names_its_steps():
    strategy, clients, shared, owns = cohort("fedavg", lr=1e200)
    with pytest.raises(FloatingPointError, match="after 4 steps"):
        strategy.train_clients(clients, shared, owns, 3)
