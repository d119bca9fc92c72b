"""Laws of all strategies: pure losses, equal client states, golden runs, and learning."""

import time
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fedkd.federation import serialization
from fedkd.metrics.accuracy import evaluate
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.step_counter import StepCount, StepCounter
from simulations.config import compose
from simulations.federation.runner import run_federation
from tests import golden
from tests.small_runs import LOCAL_TRAININGS, STRATEGIES, same_tensors, small_run, strategy_overrides


def prepared_clients(name: str, *overrides: str, number: int = 3):
    """Clients in round 3: for each its batches with draws, its initial weights, and its state."""
    ran = small_run(f"strategy={name}", *strategy_overrides(name), "rounds=2", "clients_per_round=6", *overrides)
    strategy, broadcast, parts = ran.simulation.strategy, {p: ran.state[p] for p in ran.simulation.strategy.broadcast_parts}, []
    for client in range(number):
        participant, client_state = ran.simulation.client(client, 3), ran.client_states[client]
        batches = participant.batches()
        batches = list(batches.with_drawn(strategy.prepare_batches(participant, batches, broadcast, client_state, 3)))
        parts.append((batches, strategy.initial_weights(participant, broadcast, client_state), client_state))
    return ran.simulation, strategy, broadcast, parts


def clone(tree):
    return {key: clone(value) if isinstance(value, dict) else value.clone() for key, value in tree.items()}


@pytest.mark.parametrize("name", LOCAL_TRAININGS)
def test_loss_is_pure(name):
    simulation, strategy, broadcast, [(batches, start, client_state)] = prepared_clients(name, number=1)
    model = deepcopy(simulation.networks[0].model).train()
    model.load_state_dict(start)
    before = clone({"broadcast": broadcast, "client_state": client_state, "drawn": batches[0].drawn})
    attributes, state = dict(vars(strategy)), torch.get_rng_state()
    (first, metrics), (second, again) = (strategy.loss(FunctionalModel(model), batches[0], broadcast, client_state) for _ in range(2))
    assert torch.equal(first, second) and same_tensors(metrics, again) and first.shape == ()
    assert same_tensors({"broadcast": broadcast, "client_state": client_state, "drawn": batches[0].drawn}, before)
    assert vars(strategy) == attributes and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", LOCAL_TRAININGS)
def test_loss_is_invariant_to_batch_order(name):
    simulation, strategy, broadcast, [(batches, start, client_state)] = prepared_clients(name, "precision=float64", number=1)
    model, batch = deepcopy(simulation.networks[0].model).train(), batches[0]
    order = torch.arange(len(batch.y)).flip(0)
    drawn = {key: value[order] if key == "latent" else value for key, value in batch.drawn.items()}
    model.load_state_dict(start)
    value, metrics = strategy.loss(FunctionalModel(model), batch, broadcast, client_state)
    other, others = strategy.loss(FunctionalModel(model), Batch(batch.x[order], batch.y[order], drawn), broadcast, client_state)
    assert_close({"": other, **others}, {"": value, **metrics}, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOCAL_TRAININGS)
def test_loss_under_vmap(name):
    """Values, metrics and gradients of three clients under vmap equal those of each client."""
    simulation, strategy, broadcast, parts = prepared_clients(name, "model=mlp", "precision=float64", "partition.alpha=1000")
    names = [name for name, _ in simulation.networks[0].model.named_parameters()]

    def stack(trees):
        first = trees[0]
        return {key: (stack if isinstance(first[key], dict) else torch.stack)([tree[key] for tree in trees]) for key in first}

    def loss(weights, x, y, drawn, client_state):
        value, metrics = strategy.loss(FunctionalModel(simulation.networks[0].model, weights), Batch(x, y, drawn), broadcast, client_state)
        return value, (value, metrics)

    batches, starts, client_states = ([part[i] for part in parts] for i in range(3))
    starts = [{key: value + k / 10 for key, value in start.items()} for k, start in enumerate(starts)]
    x, y = (torch.stack([getattr(steps[0], name) for steps in batches]) for name in ("x", "y"))
    together = torch.func.vmap(torch.func.grad(loss, has_aux=True))
    gradients, (values, metrics) = together(stack(starts), x, y, stack([steps[0].drawn for steps in batches]), stack(client_states))
    for k, (start, client_state) in enumerate(zip(starts, client_states)):
        model = deepcopy(simulation.networks[0].model).train()
        model.load_state_dict(start)
        value, alone = strategy.loss(FunctionalModel(model), batches[k][0], broadcast, client_state)
        assert_close(values[k], value.detach(), rtol=1e-12, atol=1e-12)
        for key, metric in alone.items():
            assert_close(metrics[key][k], metric.detach(), rtol=1e-12, atol=1e-12)
        for key, gradient in zip(names, torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)):
            assert_close(gradients[key][k], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STRATEGIES)
def test_client_states_have_equal_forms(name):
    """So that client states can be stacked, also those of clients that have not trained."""
    ran = small_run(f"strategy={name}", *strategy_overrides(name))
    trees = [ran.simulation.strategy._new_client_state(ran.simulation.client(k, 1)) for k in range(2)] + list(ran.client_states.values())
    forms = [{name: (value.shape, value.dtype) for name, value in serialization.flatten(tree).items()} for tree in trees]
    assert len(forms) > 3 and all(form == forms[0] for form in forms)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_does_not_change_its_arguments(name):
    ran = small_run(f"strategy={name}", *strategy_overrides(name))
    strategy, server = ran.simulation.strategy, ran.simulation.federation().server
    broadcast, client_state = {part: ran.state[part] for part in strategy.broadcast_parts}, ran.client_states[min(ran.client_states)]
    before = clone({"state": ran.state, "client_state": client_state})
    update, kept = strategy.train(ran.simulation.client(min(ran.client_states), 4), broadcast, client_state, 4)
    count, total = [StepCount(0, 0, 0.0)], strategy.server_steps(server, [update], 4)
    with StepCounter(count.append, total):
        strategy.server_training(server, strategy.aggregate(server, ran.state, [update], 4)[0], [update], 4)
    assert count[-1].done == total, "server_steps is what the server's training takes"
    strategy.evaluate(ran.simulation.client(min(ran.client_states), 4, testing=True), broadcast, client_state, 4, 100)
    assert same_tensors({"state": ran.state, "client_state": client_state}, before) and not same_tensors(kept, client_state)


@pytest.mark.parametrize("name", STRATEGIES)
def test_golden_run(name):
    actual, expected = golden.norms(name), golden.read(name)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value, rel=1e-10, abs=1e-300), (
            f"{name}: {key}; if the change is intended, run {golden.COMMAND} {name}"
        )


def test_golden_files_match_strategies():
    assert sorted(path.stem for path in golden.FOLDER.glob("*.json")) == STRATEGIES


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_shipped_values_take_less_than_half_a_minute(name, tmp_path):
    """Three rounds on digits by the default federation, in seconds of a processor. Larger values have a name of their own."""
    public_data = [override for override in strategy_overrides(name) if override.startswith("public_data=")]
    begin = time.process_time()
    run_federation(compose(["engine=local", f"strategy={name}", *public_data, "rounds=3", "progress=false", f"output={tmp_path}"]))
    assert time.process_time() - begin < 30


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_learns(name):
    """After two rounds the local test accuracy is better than chance."""
    settings = ("local_steps=25", "rounds=2", "clients_per_round=6", "clients_per_vmap=6", "optimizer.lr=0.1")
    ran = small_run(f"strategy={name}", *strategy_overrides(name), *settings)
    broadcast = {part: ran.state[part] for part in ran.simulation.strategy.broadcast_parts}
    scores = [
        ran.simulation.strategy.evaluate(ran.simulation.client(k, 2, testing=True), broadcast, ran.client_states[k], 2, 100)[""]
        for k in range(6)
    ]
    assert sum(int(s.correct.sum()) for s in scores) / sum(int(s.total.sum()) for s in scores) > 0.3
    if (
        model := ran.simulation.strategy.global_model(
            replace(ran.simulation.federation().server, client_states=ran.client_states), ran.state
        )
    ) is not None:
        assert isinstance(model, nn.Module) and not model.training
        assert evaluate(model, ran.simulation.global_test, 1000, 10).accuracy > 0.2
