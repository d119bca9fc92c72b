"""FedMD: clients of networks of their own agree on logits of public images (Li and Wang 2019)."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedkd.distillation.logit_distillation import logits_on
from fedkd.seed import Seed
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.loop import fit
from fedkd.types import Update
from simulations.engine.vmap_tuning import choose_clients_per_vmap
from tests import oracles
from tests.conftest import options, run, same, settle

FEDMD = ("strategy=fedmd", *options("fedmd"))


def started(*overrides: str):
    """A world, its server, and what it broadcasts in round 1."""
    home, _ = settle(*FEDMD, *overrides)
    server = home.federation().server
    return home, replace(server, seed=server.seed / "round" / 1 / "server"), home.strategy.init_server(server)


def sent(client: int, logits: torch.Tensor, num_examples: int = 5) -> Update:
    return Update(client, num_examples, "net", {"logits": {"public": logits}})


# --------------------------------------------------------------------------------------------------------------- digest
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_digest_is_the_equation(weight):
    home, _, _ = started("model=mlp", "model.widths=[8]", "precision=float64", f"strategy.weight={weight}")
    model, random = deepcopy(home.model).train(), np.random.default_rng(0)
    x, consensus = random.random((6, 1, 8, 8)), random.standard_normal((6, 10))
    batch = Batch(torch.from_numpy(x), torch.zeros(6), {"consensus": torch.from_numpy(consensus)})
    value, metrics = home.strategy.digest(FunctionalModel(model), batch, {}, {})
    at = {name: weight_.detach().numpy() for name, weight_ in model.named_parameters()}
    equation = lambda head: weight * oracles.digest({**at, **head}, x, consensus)
    heads = {key: at[key] for key in ("head.weight", "head.bias")}
    assert value.item() == pytest.approx(equation(heads), rel=1e-12) and metrics == {}
    for name, slope in oracles.gradient(equation, heads).items():
        (found,) = torch.autograd.grad(value, model.get_parameter(name), retain_graph=True)
        np.testing.assert_allclose(found.numpy(), slope, atol=1e-8)


def test_parties_that_agree_have_nothing_to_digest():
    """Of two identical ones the consensus is what each of them says, and the gradient of the digest is zero."""
    home, server, state = started("model=mlp")
    model, asked = deepcopy(home.model).train(), home.held.public_data.subset(state["asked"]["index"])
    own = model(asked.images(torch.arange(len(asked)))).logits
    after, _ = home.strategy.aggregate(server, state, [sent(k, own.detach()) for k in (0, 1)], 1)
    assert torch.equal(after["consensus"]["logits"], own.detach())
    value, _ = home.strategy.digest(
        FunctionalModel(model), Batch(asked.images(torch.arange(len(asked))), asked.y, {"consensus": own.detach()}), {}, {}
    )
    assert value == 0 and all((slope == 0).all() for slope in torch.autograd.grad(value, list(model.parameters())))


# ------------------------------------------------------------------------------------------------------------ consensus
def test_the_consensus_is_the_plain_mean_of_all_who_took_part():
    """Whatever the number of their examples, and the receiver included."""
    home, server, state = started("strategy.public_size=2")
    logits = [torch.full((2, 10), value) for value in (1.0, 2.0, 6.0)]
    after, _ = home.strategy.aggregate(server, state, [sent(k, one, 10**k) for k, one in enumerate(logits)], 1)
    assert (after["consensus"]["logits"] == 3).all() and after["consensus"]["known"] == 1 and state["consensus"]["known"] == 0
    assert torch.equal(after["consensus"]["index"], state["asked"]["index"]), "it is on the images that were asked for"


def test_other_images_are_asked_for_in_every_round_each_once():
    home, server, state = started()
    logits, asked = torch.zeros(40, 10), [state["asked"]["index"]]
    for number in (1, 2):
        at = replace(server, seed=home.seed / "round" / number / "server")
        state, _ = home.strategy.aggregate(at, state, [sent(0, logits)], number)
        asked.append(state["asked"]["index"])
    assert all(len(index.unique()) == 40 and 0 <= index.min() and index.max() < len(home.held.public_data) for index in asked)
    assert len({tuple(index.tolist()) for index in asked}) == 3


def test_all_images_are_asked_for_where_there_are_no_more():
    home, _, state = started("strategy.public_size=99999", "public_data.share=0.1")
    assert state["asked"]["index"].sort().values.tolist() == list(range(len(home.held.public_data))) and len(home.held.public_data) < 200


def test_a_client_sends_its_logits_of_the_images_asked_for_and_nothing_else():
    home, _, state = started()
    update, kept = home.strategy.train(home.client(0, 1), state, None, 1)
    assert {part: set(tensors) for part, tensors in update.state.items()} == {"logits": {"public"}}
    model = deepcopy(home.model)
    model.load_state_dict({**kept["model"], **kept["local"]})
    with torch.no_grad():
        expected = model.eval()(home.held.public_data.images(state["asked"]["index"])).logits
    assert_close(update.state["logits"]["public"], expected, rtol=1e-4, atol=1e-5)
    assert home.strategy.broadcast_parts == ("asked", "consensus") and home.strategy.global_model(None, state) is None


# ----------------------------------------------------------------------------------------------------- a client's round
def consensus(home, state, known: int = 1):
    """A broadcast after the first round, of an opinion that nobody has."""
    logits = torch.randn(40, 10, generator=Seed(5).torch(), dtype=home.dtype)
    return {"asked": state["asked"], "consensus": {"index": state["asked"]["index"], "logits": logits, "known": torch.tensor(known)}}


@pytest.mark.parametrize("own", ["fresh", "trained"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_round_is_a_digest_and_a_revisit(own, epochs):
    """A plain loop: the digest in full batches and fresh orders, then cross-entropy, each with an optimizer of its own; and BatchNorm's
    statistics of both. Who sat out the first round digests in the second like everybody else."""
    home, _, state = started("precision=float64", f"strategy.epochs={epochs}", "strategy.batch_size=12", "optimizer.momentum=0.9")
    memory = None if own == "fresh" else home.strategy.train(home.client(0, 1), state, None, 1)[1]
    shared, site = consensus(home, state), home.client(0, 2)
    update, kept = home.strategy.train(site, shared, memory, 2)
    model = deepcopy(home.model)
    model.load_state_dict(home.initial if memory is None else {**memory["model"], **memory["local"]})
    model.train()
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(epochs):
        order = torch.randperm(40, generator=(site.seed / "digest" / epoch).torch())
        for rows in order[:36].split(12):
            sgd.zero_grad()
            x = home.held.public_data.images(shared["consensus"]["index"][rows], torch.float64)
            torch.nn.functional.l1_loss(model(x).logits, shared["consensus"]["logits"][rows]).backward()
            sgd.step()
    sgd, losses = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), []
    for batch in site.batches():
        sgd.zero_grad()
        losses.append(torch.nn.functional.cross_entropy(model(batch.x).logits, batch.y))
        losses[-1].backward()
        sgd.step()
    for key, value in model.state_dict().items():
        assert_close({**kept["model"], **kept["local"]}[key], value, rtol=1e-9, atol=1e-12)
    assert update.metrics["loss"] == pytest.approx(sum(losses).item() / len(losses)), "what is reported is the revisit's"


def test_the_first_round_has_no_digest():
    home, _, state = started()
    unknown = consensus(home, state, known=0)
    assert (
        len(home.strategy.local_phases(home.client(0, 1), state, {}, 1))
        == 1
        == len(home.strategy.local_phases(home.client(0, 1), unknown, {}, 1))
    )
    assert len(home.strategy.local_phases(home.client(0, 1), consensus(home, state), {}, 1)) == 2
    ours, alone = run(*FEDMD, "rounds=1"), run("strategy=feddistill_logits", "strategy.gamma=0", "public_data=held_out", "rounds=1")
    assert ours.memories.keys() == alone.memories.keys()
    assert all(same(ours.memories[k][part], alone.memories[k][part]) for k in ours.memories for part in ("model", "local"))


def test_with_weight_0_every_client_trains_alone_and_with_another_it_does_not():
    """Models and BatchNorm statistics, bit for bit over three rounds."""
    alone = run("strategy=feddistill_logits", "strategy.gamma=0", "public_data=held_out").memories
    for weight, equal in ((0, True), (1, False)):
        ours = run(*FEDMD, f"strategy.weight={weight}").memories
        assert all(same(ours[k][part], alone[k][part]) for k in ours for part in ("model", "local")) == equal


def test_a_digest_brings_a_client_nearer_to_the_consensus():
    home, _, state = started("strategy.epochs=10", "optimizer.lr=0.1")
    shared, site, far = consensus(home, state), home.client(0, 2), []
    shared["consensus"]["logits"] = torch.linspace(-2, 2, 10).expand(40, -1)
    memory = home.strategy._new_client_state(site)
    _, phases, begun, own = home.strategy._prepare(site, shared, memory, 2)
    asked = home.held.public_data.subset(shared["consensus"]["index"])
    after = fit(home.model, begun, *phases[0], site.stepper, broadcast=shared, client_state=own).tensors
    for tensors in (begun, after):
        far.append((logits_on(home.model, tensors, asked, 40, torch.float32) - shared["consensus"]["logits"]).abs().mean().item())
    assert far[1] < 0.8 * far[0]


def test_public_labels_have_no_say():
    home, server, state = started()
    other = replace(home.held.public_data, y=torch.randint(10, (len(home.held.public_data),), generator=Seed(3).torch()))
    shared, site = consensus(home, state), home.client(0, 2)
    (sent_, kept), (again, memory) = (home.strategy.train(one, shared, None, 2) for one in (site, replace(site, public_data=other)))
    assert same(sent_.state, again.state) and same(kept, memory)
    afters = [home.strategy.aggregate(one, state, [sent_], 1)[0] for one in (server, replace(server, public_data=other))]
    assert same(*afters)


@pytest.mark.parametrize("size", [1, 3])
def test_a_public_set_smaller_than_a_batch_is_one_batch(size):
    home, _, _ = started(f"strategy.public_size={size}")
    state = home.strategy.init_server(home.federation().server)
    shared = {**state, "consensus": {"index": state["asked"]["index"], "logits": torch.zeros(size, 10), "known": torch.tensor(1)}}
    (digest, _), _ = home.strategy.local_phases(home.client(0, 2), shared, {}, 2)
    assert digest.index.shape == (1, size)
    update, _ = home.strategy.train(home.client(0, 2), shared, None, 2)
    assert update.state["logits"]["public"].shape == (size, 10)


# --------------------------------------------------------------------------------------------------------- federations
def test_clients_of_unlike_networks_agree():
    ran = run(*FEDMD, "model=heterogeneous", "clients_per_round=6", "rounds=2")
    keys = {client: tuple(memory["model"]) for client, memory in ran.memories.items()}
    assert len(set(keys.values())) == 2 and len({network.name for network in ran.home.networks}) == 3
    assert set(ran.state) == {"asked", "consensus"} and ran.state["consensus"]["known"] == 1
    assert torch.isfinite(ran.state["consensus"]["logits"]).all()


def test_how_many_train_at_once_can_be_found_out():
    home, _ = settle(*FEDMD, "num_clients=12", "clients_per_round=10")
    number, milliseconds = choose_clients_per_vmap(home, 1)
    assert str(number) in milliseconds and set(milliseconds) == {"1", "5", "10"}
