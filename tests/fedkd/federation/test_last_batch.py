"""``local_epochs`` is a pass over all examples: the last, smaller batch is used, unless ``drop_last`` is set."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedkd.errors import ConfigError
from fedkd.training.functional_model import load
from fedkd.types import flatten
from tests.small_runs import small_simulation

EPOCHS = ("local_steps=null", "local_epochs=2", "precision=float64")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function ``(sizes, *overrides) -> simulation`` whose clients have these numbers of training examples."""
    from tests import small_runs

    monkeypatch.setattr(small_runs, "SMALL", tuple(word for word in small_runs.SMALL if not word.startswith("partition")))
    return partial(simulation_with, tmp_path)


def simulation_with(path, sizes, *overrides):
    starts = np.cumsum([0, *sizes])
    shards = {f"train_{k}": np.arange(starts[k], starts[k + 1]) for k in range(len(sizes))}
    np.savez(path / "p.npz", **shards, **{f"test_{k}": np.arange(20 * k, 20 * k + 20) for k in range(len(sizes))})
    partition = ("partition=from_file", f"partition.path={path / 'p.npz'}", f"num_clients={len(sizes)}", "clients_per_round=2")
    return small_simulation(
        *partition, *EPOCHS, *(() if any("model" in word for word in overrides) else ("model=mlp",)), "batch_size=32", *overrides
    )[0]


def test_every_example_is_in_every_pass(make):
    simulation = make([33, 20, 64, 70])
    assert [simulation.workload(k) for k in range(4)] == [(32, 4), (20, 2), (32, 4), (32, 6)]
    for number, sizes in enumerate([[32, 1] * 2, [20] * 2, [32] * 4, [32, 32, 6] * 2]):
        client = simulation.client(number, 1)
        batches = client.batches()
        assert [len(batch.y) for batch in batches] == sizes
        seen = torch.cat([index[:size] for index, size in zip(batches.index, sizes)])
        assert seen.bincount().tolist() == [2] * len(client.data)
        assert simulation.num_examples_per_round(number, 1) == 2 * len(client.data)
        images = [len(batch.x) for batch in batches]
        assert images == sizes


def test_drop_last_leaves_it_out(make):
    simulation = make([33, 20, 64, 70], "drop_last=true")
    assert [simulation.workload(k) for k in range(4)] == [(32, 2), (20, 2), (32, 4), (32, 4)]
    assert [len(batch.y) for batch in simulation.client(3, 1).batches()] == [32] * 4


def test_steps_have_full_batches(make):
    simulation = make([33, 20], "local_steps=3", "local_epochs=null")
    assert [len(batch.y) for batch in simulation.client(0, 1).batches()] == [32] * 3


def test_a_round_equals_a_plain_loop_over_all_batches(make):
    """SGD with momentum and weight decay over the batches that a DataLoader with this order would give."""
    simulation = make([70, 33], "optimizer=momentum", "strategy=fedavg")
    client = simulation.client(0, 1)
    update, _ = simulation.strategy.train(client, {"model": simulation.initial}, None, 1)
    generator, orders = (client.seed / "order").torch(), []
    orders = [torch.randperm(70, generator=generator) for _ in range(2)]
    load(client.model, simulation.initial)
    optimizer = torch.optim.SGD(client.model.train().parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    losses = []
    for index in (batch for order in orders for batch in order.split(32)):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(client.model(client.data.images(index, torch.float64)).logits, client.data.y[index]))
        losses[-1].backward()
        optimizer.step()
    assert len(losses) == 6 and update.metrics["loss"] == pytest.approx(sum(losses).item() / 6, rel=1e-12)
    for key, value in client.model.state_dict().items():
        assert_close(update.state["model"][key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["fedgen", "scaffold"])
def test_clients_of_one_size_train_together(make, name):
    """FedGen draws an embedding for every example of a batch, also of a smaller one."""
    simulation = make([70, 33, 70, 64], f"strategy={name}", *(["strategy.regularize_first_round=true"] if name == "fedgen" else []))
    chunks = simulation.split_into_chunks(range(4), 4, 1)
    assert sorted(map(sorted, chunks)) == [[0, 2], [1], [3]]
    state = simulation.strategy.init_server(simulation.federation().server)
    broadcast = {part: state[part] for part in simulation.strategy.broadcast_parts}
    clients = [simulation.client(k, 1) for k in (0, 2)]
    clients[1] = replace(clients[1], num_steps=5)  # a straggler
    together = simulation.strategy.train_clients(clients, broadcast, [None, None], 1)
    for client, (update, _) in zip(clients, together):
        alone, _ = simulation.strategy.train(client, broadcast, None, 1)
        left, right = flatten(update.state), flatten(alone.state)
        for key in right:
            assert_close(left[key], right[key], rtol=1e-12, atol=1e-12)


def test_counts_of_labels_are_those_of_all_examples(make):
    simulation = make([70, 33], "strategy=fedgen")
    state = simulation.strategy.init_server(simulation.federation().server)
    update, _ = simulation.strategy.train(simulation.client(1, 1), {**state}, None, 1)
    assert update.state["labels"]["counts"].tolist() == (2 * simulation.client(1, 1).data.y.bincount(minlength=10)).tolist()


OWN = ("~model", "+model._target_=tests.own_networks.batch_normalized", "+model._partial_=true")


@pytest.mark.parametrize(
    ("sizes", "overrides", "message"),
    [
        ([33, 40], (), "^drop_last must be true, .* BatchNorm cannot take, got 'client 0 with 33 examples and batch_size 32'"),
        ([40, 40], ("batch_size=1",), "^batch_size must be at least 2 .* got 'client 0 with 40 examples and batch_size 1'"),
    ],
)
def test_batches_of_one_that_batchnorm_cannot_take_are_refused(make, sizes, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make(sizes, *OWN, *overrides)
    make(sizes, *overrides, "model=fedgen_cnn")  # its BatchNorm has maps of several pixels
    make(sizes, *(word for word in overrides if word != "batch_size=1"), *OWN, "drop_last=true", "batch_size=32")
