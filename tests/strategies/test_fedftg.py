"""FedFTG: its losses, and its server against a plain loop over two rounds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fedkd.distillation.image_synthesis import stack_models
from fedkd.federation.aggregation import average
from fedkd.losses.diversity import noise_distances
from fedkd.models.generators import ImageConvByLabel
from fedkd.tensor_ops import one_hot
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Output, Task
from strategies.fedftg import labels_in_proportion
from tests import oracles
from tests.public_code import public_code
from tests.small_runs import same_tensors, small_run, small_simulation, strategy_overrides
from tests.strategies.server_tools import DOUBLE, FixedImages, check_close, clone, network_with, perceptron_models, trained_clients
from tests.strategies.strategy_tools import to_numpy

PUBLIC = public_code("fedftg")
SHARES = torch.tensor([[1.0, 0.2, 0.7], [0.0, 0.8, 0.3]], dtype=DOUBLE)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("weighting", ["per_sample", "scalar"])
@pytest.mark.parametrize("discrepancy", ["l1", "kl"])
def test_generator_loss(discrepancy, weighting, place):
    """Value and gradient by the images for each client. With l1 the teacher's logits carry no gradient."""
    choices = (f"strategy.discrepancy={discrepancy}", f"strategy.weighting={weighting}", "strategy.cls=0.7", "strategy.dis=1.5")
    simulation, (student, *teachers), random = perceptron_models("strategy=fedftg", *strategy_overrides("fedftg"), *choices, number=3)
    x, noise, y = random.random((5, 1, 8, 8)), 0.3 * random.standard_normal((5, 3)), np.array([0, 1, 1, 2, 2])
    module = FixedImages(torch.from_numpy(x))
    drawn = {"noise": torch.from_numpy(noise), "distances": noise_distances(torch.from_numpy(noise)), "place": torch.tensor(place)}
    broadcast = {"teachers": stack_models(teachers), "student": student, "labels": {"shares": SHARES}}
    value, terms = simulation.strategy.generator_loss(
        FunctionalModel(module), Batch(None, torch.from_numpy(y), drawn), broadcast, {}, network=simulation.model
    )
    fixed = oracles.mlp(to_numpy(teachers[place]), x) if discrepancy == "l1" else None
    arrays = (to_numpy(student), to_numpy(teachers[place]), fixed, SHARES[place].numpy()[y], 2, 0.7, 1.5, discrepancy, weighting)
    equation = lambda at: oracles.fedftg_generator(at["x"], noise, y, *arrays)
    assert value.item() == pytest.approx(equation({"x": x}), rel=1e-10)
    assert value.item() == pytest.approx((-terms["discrepancy"] + 0.7 * terms["label_loss"] + 1.5 * terms["diversity_loss"] / 2).item())
    (actual,) = torch.autograd.grad(value, module.x)
    np.testing.assert_allclose(actual.numpy(), oracles.gradient(equation, {"x": x})["x"], atol=1e-7)


def test_weightings_differ():
    """Losses of 0 and 10 with shares 1 and 0: the weighted mean is 0 by sample, and 2.5 by the mean share."""
    loss, share = torch.tensor([0.0, 10.0]), torch.tensor([1.0, 0.0])
    assert ((share * loss).mean(), share.mean() * loss.mean()) == (0.0, 2.5)


@pytest.mark.parametrize("mean_over_classes", [True, False])
def test_model_loss(mean_over_classes):
    """The factor 1/C, and the teachers' probabilities weighted by their shares of the label."""
    simulation, models, random = perceptron_models(
        "strategy=fedftg", *strategy_overrides("fedftg"), f"strategy.mean_over_classes={str(mean_over_classes).lower()}"
    )
    counts = np.array([[4.0, 1, 0] + [1] * 7, [0.0, 3, 5] + [1] * 7])
    x, y, student = random.random((6, 1, 8, 8)), np.array([0, 1, 1, 2, 2, 9]), network_with(simulation, simulation.initial)
    shares = torch.from_numpy(counts / counts.sum(0))
    logits = [FunctionalModel(simulation.model).at(one)(torch.from_numpy(x)).logits.softmax(-1) for one in models]
    target = sum(share[torch.from_numpy(y)][:, None] * one for share, one in zip(shares, logits))
    value, _ = simulation.strategy.distillation(
        FunctionalModel(student), Batch(None, torch.from_numpy(y), {"image": torch.from_numpy(x), "target": target}), {}, {}
    )
    at = to_numpy(dict(student.named_parameters()))
    equation = lambda head: oracles.fedftg_student({**at, **head}, x, y, [to_numpy(one) for one in models], counts, mean_over_classes)
    heads = {key: at[key] for key in ("head.weight", "head.bias")}
    assert value.item() == pytest.approx(equation(heads), rel=1e-12)
    for name, slope in oracles.gradient(equation, heads).items():
        (actual,) = torch.autograd.grad(value, student.get_parameter(name), retain_graph=True)
        np.testing.assert_allclose(actual.numpy(), slope, atol=1e-8)


def plain_fedftg(simulation, server, state, updates, server_round: int):
    """One round of FedFTG's server: the generator and the model, each with a new optimizer."""
    strategy, models = simulation.strategy, [u.state["model"] for u in updates]
    counts = torch.stack([torch.bincount(simulation.train.y[simulation.partition.train[u.client]], minlength=10) for u in updates])
    shares, teachers = counts.double() / (counts.sum(0).double() + 1e-6), [network_with(simulation, one).eval() for one in models]
    generator, student = (
        strategy.generator(simulation.task).double(),
        network_with(simulation, average(models, strategy.aggregation_weights(updates))),
    )
    generator.load_state_dict(state["generator"])
    statistics = {key: value.clone() for key, value in student.named_buffers()}
    adam = torch.optim.Adam(generator.parameters(), lr=0.01 * 0.7 ** (server_round - 1), eps=1e-3)
    sgd = torch.optim.SGD(student.parameters(), lr=0.1 * 0.5 ** (server_round - 1), weight_decay=0.001)
    labels, noises = strategy.draw_inputs(server, counts.sum(0))
    for y, noise in zip(labels, noises):
        student.eval(), generator.train()
        for k, teacher in enumerate(teachers):
            weight, x = shares[k][y], generator(noise, y)
            t, s, flat = teacher(x).logits, student(x).logits, x.flatten(1)
            pairs = (flat[:, None] - flat).abs().mean(-1) * (noise[:, None] - noise).square().mean(-1)
            discrepancy = ((s - t.detach()).abs().mean(-1) * weight).mean()
            adam.zero_grad()
            (-discrepancy + F.cross_entropy(t, y) * weight.mean() + (-pairs.mean()).exp() / len(updates)).backward()
            adam.step()
        student.train(), generator.eval()
        with torch.no_grad():
            x = generator(noise, y)
            target = sum(shares[k][y][:, None] * teacher(x).logits.softmax(-1) for k, teacher in enumerate(teachers))
        for _ in range(strategy.student_steps):
            sgd.zero_grad()
            (-(target * student(x).logits.log_softmax(-1))).mean().backward()
            sgd.step()
        student.load_state_dict({**student.state_dict(), **statistics})
    return generator.state_dict(), student.state_dict()


def test_server_equals_plain_loop_over_two_rounds():
    """The generator continues from the state. Both optimizers are new in a round, with a decayed learning rate."""
    simulation, server, state, updates = trained_clients(
        "fedftg", "precision=float64", "strategy.student_lr_decay=0.5", "strategy.generator_lr_decay=0.7"
    )
    for number in (1, 2):
        at = replace(server, seed=simulation.seed / "round" / number / "server")
        generator, student = plain_fedftg(simulation, at, state, updates, number)
        after, _ = simulation.strategy.aggregate(at, state, updates, number)
        check_close(after["generator"], generator)
        check_close(after["model"], student)
        assert after.keys() == {"model", "generator", "average"}
        state = clone({part: {key: value.contiguous() for key, value in tensors.items()} for part, tensors in after.items()})


# ------------------------------------------------------------------------------------------------------- the public code
class LinearImages(nn.Module):
    """The public code's inputs: ``tanh(noise @ generator_map + onehot(y) @ label_map)`` as images [B, 3, 4, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ParameterDict({name: PUBLIC[f"{name}_map"].clone() for name in ("generator", "label")})

    def forward(self, noise, y):
        return torch.tanh(noise @ self.maps["generator"] + one_hot(y, 4).double() @ self.maps["label"]).view(-1, 3, 4, 4)


class LinearClassifier(nn.Linear):
    """Logits of flattened images."""

    def __init__(self) -> None:
        super().__init__(48, 4, dtype=DOUBLE)

    def forward(self, x):
        return Output(super().forward(x.flatten(1)), x.flatten(1))


def test_generator_loss_of_public_code():
    """Loss, its three terms, and the gradient by the generator, for client 1 of three."""
    simulation, _ = small_simulation("strategy=fedftg", *strategy_overrides("fedftg"))
    module, (noise, counts) = LinearImages(), (PUBLIC[name] for name in ("noise", "counts"))
    drawn = {"noise": noise, "distances": noise_distances(noise), "place": torch.tensor(1)}
    student, teacher = ({"weight": PUBLIC[f"{name}_weight"].T, "bias": PUBLIC[f"{name}_bias"]} for name in ("student", "teacher"))
    shares, batch = counts.double() / (counts.sum(0).double() + 1e-6), Batch(None, PUBLIC["labels"], drawn)
    broadcast = {"teachers": stack_models([teacher] * 3), "student": student, "labels": {"shares": shares}}
    assert_close(shares[1][batch.y], PUBLIC["weight"], rtol=1e-12, atol=0)
    value, terms = simulation.strategy.generator_loss(FunctionalModel(module), batch, broadcast, {}, network=LinearClassifier())
    assert_close(-terms["discrepancy"], PUBLIC["loss_discrepancy"], rtol=1e-9, atol=0)
    assert_close(terms["label_loss"], PUBLIC["loss_label"], rtol=1e-9, atol=0)
    assert_close(terms["diversity_loss"], PUBLIC["loss_diversity"], rtol=1e-9, atol=0)
    assert_close(value, PUBLIC["loss"], rtol=1e-9, atol=0)
    (actual,) = torch.autograd.grad(value, module.maps["generator"])
    assert_close(actual, PUBLIC["grad_generator_map"], rtol=1e-9, atol=1e-12)


LAYERS = {"l1.0": "project", "l2.0": "project_label", "conv_blocks0.0": "begin", "conv_blocks1.0": "stages.0.0"} | {
    "conv_blocks1.1": "stages.0.1", "conv_blocks2.0": "stages.1.0", "conv_blocks2.1": "stages.1.1", "conv_blocks2.3": "end",
    "conv_blocks2.5": "normalize",
}  # fmt: skip
"""Layers of the public code's generator, and ours."""


def test_generator_of_public_code():
    """Images of a small generator in eval mode, from its tensors. The sizes are those of CIFAR-10 and CIFAR-100."""
    task, tensors = Task("small", (3, 8, 8), 4), {}
    module = ImageConvByLabel(task, width=4, noise_size=6).double().eval()
    for key, value in public_code("fedftg/small").items():
        layer, _, name = key.rpartition(".")
        tensors[f"{LAYERS[layer]}.{name}"] = value
    module.load_state_dict(tensors)
    assert_close(module(PUBLIC["small_noise"], PUBLIC["small_onehot"].argmax(-1)), PUBLIC["small_images"], rtol=1e-10, atol=1e-12)
    for classes, noise_size in ((10, 100), (100, 256)):
        module = ImageConvByLabel(replace(task, shape=(3, 32, 32), num_classes=classes), width=64, noise_size=noise_size)
        assert sum(p.numel() for p in module.parameters()) == PUBLIC[f"generator_parameters_cifar{classes}"]


def test_label_numbers_of_public_code():
    assert torch.equal(labels_in_proportion(PUBLIC["counts"].sum(0), 97).bincount(), PUBLIC["label_numbers_of_97"])


def test_labels_have_proportions_of_label_counts():
    """Exactly over the iterations of a round, in an order that the round's seed draws."""
    simulation, _ = small_simulation("strategy=fedftg", *strategy_overrides("fedftg"), "strategy.batch_size=10", "strategy.iterations=40")
    counts, server = torch.tensor([0, 30, 0, 10, 0, 0, 0, 0, 0, 0]), simulation.federation().server
    y, noise = simulation.strategy.draw_inputs(server, counts)
    assert y.flatten().bincount().tolist() == [0, 300, 0, 100] and (y == 3).sum(1).unique().numel() > 2
    assert y.shape == (40, 10) and noise.shape == (40, 10, 6) and noise.std().item() == pytest.approx(1, abs=0.05)
    again, other = (simulation.strategy.draw_inputs(replace(server, seed=server.seed / path), counts)[0] for path in ("a", "b"))
    assert not torch.equal(again, other) and torch.equal(simulation.strategy.draw_inputs(server, counts)[0], y)


def test_class_without_examples():
    simulation, server, state, updates = trained_clients("fedftg")
    bare = [
        replace(u, state={**u.state, "labels": {"counts": u.state["labels"]["counts"] * (torch.arange(10) == k)}})
        for k, u in enumerate(updates)
    ]
    after, metrics = simulation.strategy.aggregate(server, state, bare, 1)
    assert all(torch.isfinite(value).all() for part in after.values() for value in part.values()) and metrics["distillation_loss"] > 0


def test_clients_send_label_counts():
    simulation, _, _, updates = trained_clients("fedftg", "local_steps=2")
    for u in updates:
        assert set(u.state) == {"model", "labels"}
        assert (
            u.state["labels"]["counts"].tolist()
            == np.bincount(simulation.train.y[simulation.partition.train[u.client]], minlength=10).tolist()
        )


def test_generator_is_kept_over_rounds():
    ran = small_run("strategy=fedftg", *strategy_overrides("fedftg"))
    assert ran.state["generator"]["begin.num_batches_tracked"] == 3 * 2 * 3
    once = small_run("strategy=fedftg", *strategy_overrides("fedftg"), "rounds=1")
    assert not same_tensors(once.state["generator"], ran.state["generator"]) and ran.simulation.strategy.broadcast_parts == ("model",)
