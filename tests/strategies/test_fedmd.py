"""FedMD (Li and Wang 2019): clients with any networks distill mean logits of public images."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedkd.distillation.logit_distillation import compute_logits
from fedkd.seed import Seed
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.loop import fit
from fedkd.types import Update
from simulations.engine.vmap_tuning import choose_clients_per_vmap
from tests import oracles
from tests.small_runs import same_tensors, small_run, small_simulation, strategy_overrides

FEDMD = ("strategy=fedmd", *strategy_overrides("fedmd"))


def small_fedmd(*overrides: str):
    """A simulation, its server in round 1, and the first broadcast."""
    simulation, _ = small_simulation(*FEDMD, *overrides)
    server = simulation.federation().server
    return simulation, replace(server, seed=server.seed / "round" / 1 / "server"), simulation.strategy.init_server(server)


def logits_update(client: int, logits: torch.Tensor, num_examples: int = 5) -> Update:
    return Update(client, num_examples, "net", {"logits": {"public": logits}})


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_digest_loss(weight):
    simulation, _, _ = small_fedmd("model=mlp", "model.widths=[8]", "precision=float64", f"strategy.weight={weight}")
    model, random = deepcopy(simulation.model).train(), np.random.default_rng(0)
    x, consensus = random.random((6, 1, 8, 8)), random.standard_normal((6, 10))
    batch = Batch(torch.from_numpy(x), torch.zeros(6), {"consensus": torch.from_numpy(consensus)})
    value, metrics = simulation.strategy.digest(FunctionalModel(model), batch, {}, {})
    at = {name: weight_.detach().numpy() for name, weight_ in model.named_parameters()}
    equation = lambda head: weight * oracles.digest({**at, **head}, x, consensus)
    heads = {key: at[key] for key in ("head.weight", "head.bias")}
    assert value.item() == pytest.approx(equation(heads), rel=1e-12) and metrics == {}
    for name, slope in oracles.gradient(equation, heads).items():
        (actual,) = torch.autograd.grad(value, model.get_parameter(name), retain_graph=True)
        np.testing.assert_allclose(actual.numpy(), slope, atol=1e-8)


def test_identical_clients_have_no_digest_loss():
    """The consensus of two identical clients is their own output, so loss and gradient of the digest are 0."""
    simulation, server, state = small_fedmd("model=mlp")
    model, images = deepcopy(simulation.model).train(), simulation.client_data.public_data.subset(state["asked"]["index"])
    own = model(images.images(torch.arange(len(images)))).logits
    after, _ = simulation.strategy.aggregate(server, state, [logits_update(k, own.detach()) for k in (0, 1)], 1)
    assert torch.equal(after["consensus"]["logits"], own.detach())
    value, _ = simulation.strategy.digest(
        FunctionalModel(model), Batch(images.images(torch.arange(len(images))), images.y, {"consensus": own.detach()}), {}, {}
    )
    assert value == 0 and all((slope == 0).all() for slope in torch.autograd.grad(value, list(model.parameters())))


def test_consensus_is_the_unweighted_mean():
    """It does not depend on the numbers of examples, and it includes the receiver."""
    simulation, server, state = small_fedmd("strategy.public_size=2")
    logits = [torch.full((2, 10), value) for value in (1.0, 2.0, 6.0)]
    after, _ = simulation.strategy.aggregate(server, state, [logits_update(k, one, 10**k) for k, one in enumerate(logits)], 1)
    assert (after["consensus"]["logits"] == 3).all() and after["consensus"]["known"] == 1 and state["consensus"]["known"] == 0
    assert torch.equal(after["consensus"]["index"], state["asked"]["index"]), "the consensus is on the requested images"


def test_public_images_change_in_every_round():
    simulation, server, state = small_fedmd()
    logits, images = torch.zeros(40, 10), [state["asked"]["index"]]
    for number in (1, 2):
        at = replace(server, seed=simulation.seed / "round" / number / "server")
        state, _ = simulation.strategy.aggregate(at, state, [logits_update(0, logits)], number)
        images.append(state["asked"]["index"])
    assert all(len(index.unique()) == 40 and 0 <= index.min() and index.max() < len(simulation.client_data.public_data) for index in images)
    assert len({tuple(index.tolist()) for index in images}) == 3


def test_small_public_data_is_used_completely():
    simulation, _, state = small_fedmd("strategy.public_size=99999", "public_data.share=0.1")
    assert (
        state["asked"]["index"].sort().values.tolist() == list(range(len(simulation.client_data.public_data)))
        and len(simulation.client_data.public_data) < 200
    )


def test_clients_send_logits_only():
    simulation, _, state = small_fedmd()
    update, kept = simulation.strategy.train(simulation.client(0, 1), state, None, 1)
    assert {part: set(tensors) for part, tensors in update.state.items()} == {"logits": {"public"}}
    model = deepcopy(simulation.model)
    model.load_state_dict({**kept["model"], **kept["local"]})
    with torch.no_grad():
        expected = model.eval()(simulation.client_data.public_data.images(state["asked"]["index"])).logits
    assert_close(update.state["logits"]["public"], expected, rtol=1e-4, atol=1e-5)
    assert simulation.strategy.broadcast_parts == ("asked", "consensus") and simulation.strategy.global_model(None, state) is None


def known_consensus(simulation, state, known: int = 1):
    """A broadcast after the first round, with random logits."""
    logits = torch.randn(40, 10, generator=Seed(5).torch(), dtype=simulation.dtype)
    return {"asked": state["asked"], "consensus": {"index": state["asked"]["index"], "logits": logits, "known": torch.tensor(known)}}


@pytest.mark.parametrize("own", ["fresh", "trained"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_local_training_equals_plain_loop(own, epochs):
    """The digest in full batches with new orders, then training on the client's data, each with its own optimizer. Both update
    BatchNorm statistics. A client that was absent in the first round digests in the second one too."""
    simulation, _, state = small_fedmd("precision=float64", f"strategy.epochs={epochs}", "strategy.batch_size=12", "optimizer.momentum=0.9")
    client_state = None if own == "fresh" else simulation.strategy.train(simulation.client(0, 1), state, None, 1)[1]
    broadcast, participant = known_consensus(simulation, state), simulation.client(0, 2)
    update, kept = simulation.strategy.train(participant, broadcast, client_state, 2)
    model = deepcopy(simulation.model)
    model.load_state_dict(simulation.initial if client_state is None else {**client_state["model"], **client_state["local"]})
    model.train()
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(epochs):
        order = torch.randperm(40, generator=(participant.seed / "digest" / epoch).torch())
        for rows in order[:36].split(12):
            sgd.zero_grad()
            x = simulation.client_data.public_data.images(broadcast["consensus"]["index"][rows], torch.float64)
            torch.nn.functional.l1_loss(model(x).logits, broadcast["consensus"]["logits"][rows]).backward()
            sgd.step()
    sgd, losses = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), []
    for batch in participant.batches():
        sgd.zero_grad()
        losses.append(torch.nn.functional.cross_entropy(model(batch.x).logits, batch.y))
        losses[-1].backward()
        sgd.step()
    for key, value in model.state_dict().items():
        assert_close({**kept["model"], **kept["local"]}[key], value, rtol=1e-9, atol=1e-12)
    assert update.metrics["loss"] == pytest.approx(sum(losses).item() / len(losses)), "the reported loss is that of the second phase"


def test_first_round_has_no_digest():
    simulation, _, state = small_fedmd()
    unknown = known_consensus(simulation, state, known=0)
    assert (
        len(simulation.strategy.local_phases(simulation.client(0, 1), state, {}, 1))
        == 1
        == len(simulation.strategy.local_phases(simulation.client(0, 1), unknown, {}, 1))
    )
    assert len(simulation.strategy.local_phases(simulation.client(0, 1), known_consensus(simulation, state), {}, 1)) == 2
    ours, alone = (
        small_run(*FEDMD, "rounds=1"),
        small_run("strategy=feddistill_logits", "strategy.gamma=0", "public_data=held_out", "rounds=1"),
    )
    assert ours.client_states.keys() == alone.client_states.keys()
    assert all(
        same_tensors(ours.client_states[k][part], alone.client_states[k][part]) for k in ours.client_states for part in ("model", "local")
    )


def test_weight_zero_trains_clients_alone():
    """Models and BatchNorm statistics over three rounds, bit for bit."""
    alone = small_run("strategy=feddistill_logits", "strategy.gamma=0", "public_data=held_out").client_states
    for weight, equal in ((0, True), (1, False)):
        ours = small_run(*FEDMD, f"strategy.weight={weight}").client_states
        assert all(same_tensors(ours[k][part], alone[k][part]) for k in ours for part in ("model", "local")) == equal


def test_digest_lowers_the_distance_to_the_consensus():
    simulation, _, state = small_fedmd("strategy.epochs=10", "optimizer.lr=0.1")
    broadcast, participant, far = known_consensus(simulation, state), simulation.client(0, 2), []
    broadcast["consensus"]["logits"] = torch.linspace(-2, 2, 10).expand(40, -1)
    client_state = simulation.strategy._new_client_state(participant)
    _, phases, begun, own = simulation.strategy._prepare(participant, broadcast, client_state, 2)
    images = simulation.client_data.public_data.subset(broadcast["consensus"]["index"])
    after = fit(
        simulation.model, begun, phases[0].batches, phases[0].loss, participant.make_optimizer, broadcast=broadcast, client_state=own
    ).tensors
    for tensors in (begun, after):
        far.append(
            (compute_logits(simulation.model, tensors, images, 40, torch.float32) - broadcast["consensus"]["logits"]).abs().mean().item()
        )
    assert far[1] < 0.8 * far[0]


def test_public_labels_are_not_used():
    simulation, server, state = small_fedmd()
    other = replace(
        simulation.client_data.public_data, y=torch.randint(10, (len(simulation.client_data.public_data),), generator=Seed(3).torch())
    )
    broadcast, participant = known_consensus(simulation, state), simulation.client(0, 2)
    (sent, kept), (again, client_state) = (
        simulation.strategy.train(one, broadcast, None, 2) for one in (participant, replace(participant, public_data=other))
    )
    assert same_tensors(sent.state, again.state) and same_tensors(kept, client_state)
    afters = [simulation.strategy.aggregate(one, state, [sent], 1)[0] for one in (server, replace(server, public_data=other))]
    assert same_tensors(*afters)


@pytest.mark.parametrize("size", [1, 3])
def test_public_data_smaller_than_a_batch(size):
    simulation, _, _ = small_fedmd(f"strategy.public_size={size}")
    state = simulation.strategy.init_server(simulation.federation().server)
    broadcast = {**state, "consensus": {"index": state["asked"]["index"], "logits": torch.zeros(size, 10), "known": torch.tensor(1)}}
    digest = simulation.strategy.local_phases(simulation.client(0, 2), broadcast, {}, 2)[0].batches
    assert digest.index.shape == (1, size)
    update, _ = simulation.strategy.train(simulation.client(0, 2), broadcast, None, 2)
    assert update.state["logits"]["public"].shape == (size, 10)


def test_heterogeneous_models():
    ran = small_run(*FEDMD, "model=heterogeneous", "clients_per_round=6", "rounds=2")
    keys = {client: tuple(client_state["model"]) for client, client_state in ran.client_states.items()}
    assert len(set(keys.values())) == 2 and len({network.name for network in ran.simulation.networks}) == 3
    assert set(ran.state) == {"asked", "consensus"} and ran.state["consensus"]["known"] == 1
    assert torch.isfinite(ran.state["consensus"]["logits"]).all()


def test_clients_per_vmap_can_be_tuned():
    simulation, _ = small_simulation(*FEDMD, "num_clients=12", "clients_per_round=10")
    number, milliseconds = choose_clients_per_vmap(simulation, 1)
    assert str(number) in milliseconds and set(milliseconds) == {"1", "5", "10"}
