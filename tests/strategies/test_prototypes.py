"""FedTGP and FedGH against public code: margins, trained prototypes and trained heads; what their clients keep."""

import pytest
import torch
from torch import nn

from fedkd.federation.prototypes import class_means
from fedkd.training.batch import shuffled_epochs
from fedkd.training.functional_model import FunctionalModel, load
from fedkd.training.loop import fit
from strategies.fedgh import head_loss
from strategies.fedtgp import Prototypes, margin_of, prototype_loss
from tests.public_code import public_code
from tests.small_runs import same_tensors, small_run, small_simulation, strategy_overrides


def sgd(parameters):
    """SGD as in the public code."""
    return torch.optim.SGD(parameters, lr=0.01)


def pairs():
    """The embeddings [M, D] and labels [M] of all clients that have a class."""
    arrays = public_code("fedtgp")
    client, label = torch.nonzero(arrays["has"], as_tuple=True)
    return arrays["protos"][client, label], label


def test_the_margin_of_public_code():
    arrays = public_code("fedtgp")
    assert torch.allclose(margin_of(arrays["protos"], arrays["has"], 100.0), arrays["max_gap"], atol=1e-12)
    assert margin_of(arrays["protos"], arrays["has"], 0.5) == 0.5
    one_class = torch.zeros_like(arrays["has"])
    one_class[:, 2] = True
    assert margin_of(arrays["protos"], one_class, 100.0) == 0


@pytest.mark.parametrize(("largest", "suffix"), [(100.0, ""), (0.5, "_margin_half")])
def test_the_prototypes_of_public_code(largest, suffix):
    """Five full batches."""
    arrays, (values, label) = public_code("fedtgp"), pairs()
    module = Prototypes(4, 6).double()
    names = {"classes.weight": "embedings.weight", "hidden.weight": "middle.0.0.weight", "hidden.bias": "middle.0.0.bias"}
    names |= {"out.weight": "fc.weight", "out.bias": "fc.bias"}
    start = {name: arrays[f"start/{theirs}"] for name, theirs in names.items()}
    assert torch.allclose(FunctionalModel(module).at(start)(), arrays["prototypes_before"], atol=1e-12)
    margin, tensors, losses = margin_of(arrays["protos"], arrays["has"], largest), start, []
    for _ in range(5):
        batches = shuffled_epochs(label, values, 1, len(label), torch.Generator().manual_seed(0))
        fitted = fit(module, tensors, batches, prototype_loss, sgd, broadcast={"margin": {"m": margin}})
        tensors = fitted.tensors
        losses.append(fitted.metric_sums["loss"])
    assert torch.allclose(torch.stack(losses), arrays[f"losses{suffix}"], atol=1e-10)
    assert torch.allclose(FunctionalModel(module).at(tensors)(), arrays[f"prototypes_after{suffix}"], atol=1e-10)


def test_a_prototype_at_distance_0_has_no_gradient():
    module = Prototypes(3, 4)
    values = module().detach()
    batches = shuffled_epochs(torch.arange(3), values, 1, 3, torch.Generator().manual_seed(0))
    fitted = fit(module, dict(module.state_dict()), batches, prototype_loss, sgd, broadcast={"margin": {"m": torch.tensor(1.0)}})
    assert all(torch.isfinite(value).all() for value in fitted.tensors.values())


def test_the_head_of_public_code():
    """Three full batches."""
    arrays, (values, label) = public_code("fedgh"), pairs()
    head = nn.Linear(6, 4).double()
    start = {"weight": arrays["head_weight"], "bias": arrays["head_bias"]}
    batches = shuffled_epochs(label, values, 3, len(label), torch.Generator().manual_seed(0))
    fitted = fit(head, start, batches, head_loss, sgd)
    assert torch.allclose(fitted.tensors["weight"], arrays["head_weight_after"], atol=1e-12)
    assert torch.allclose(fitted.tensors["bias"], arrays["head_bias_after"], atol=1e-12)


@pytest.mark.parametrize(("number", "size"), [(7, 3), (6, 3), (2, 5)])
def test_every_example_is_in_one_batch_of_an_epoch(number, size):
    batches = shuffled_epochs(torch.arange(number), torch.arange(number), 2, size, torch.Generator().manual_seed(1))
    seen = torch.cat([batch.y for batch in batches])
    assert sorted(seen.tolist()) == sorted([*range(number)] * 2)
    assert all(torch.equal(batch.y, batch.values) and len(batch.y) <= size for batch in batches)


def test_class_means_are_means_of_embeddings_in_eval_mode():
    simulation, _ = small_simulation("strategy=fedproto", "precision=float64")
    client = simulation.client(0, 1)
    mean, count = class_means(client, client.initial)
    load(client.model, client.initial)
    embedding = client.model.eval()(client.data.images(torch.arange(len(client.data)), torch.float64)).embedding
    label = int(count.argmax())
    assert torch.equal(count, torch.bincount(client.data.y, minlength=10).double())
    assert torch.allclose(mean[label], embedding[client.data.y == label].mean(0), atol=1e-12)


@pytest.mark.parametrize("name", ["fedtgp", "fedgh"])
def test_clients_keep_their_layers_and_may_have_unlike_networks(name):
    ran = small_run(f"strategy={name}", *strategy_overrides(name), "model=heterogeneous", "clients_per_round=6", "rounds=2")
    assert len({tuple(state.get("local", state.get("model"))) for state in ran.client_states.values()}) > 1


def test_the_head_of_fedgh_stays_without_epochs_of_the_server():
    ran = small_run("strategy=fedgh", "strategy.server_epochs=0")
    initial = {key: value for key, value in ran.simulation.initial.items() if key.startswith("head.")}
    assert same_tensors(ran.state["model"], initial)
    assert not same_tensors(small_run("strategy=fedgh").state["model"], initial)
