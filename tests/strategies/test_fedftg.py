"""FedFTG: its losses, and its server against a plain loop over two rounds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fedkd.distillation.image_synthesis import stack_models
from fedkd.federation.aggregation import average
from fedkd.losses.diversity import noise_distances
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from tests import oracles
from tests.small_runs import same_tensors, small_run, small_simulation, strategy_overrides
from tests.strategies.server_tools import DOUBLE, FixedImages, check_close, clone, network_with, perceptron_models, trained_clients
from tests.strategies.strategy_tools import to_numpy

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
    """One round of FedFTG's server: the generator, its Adam optimizer, and the model."""
    strategy, models = simulation.strategy, [u.state["model"] for u in updates]
    counts = torch.stack([torch.bincount(simulation.train.y[simulation.partition.train[u.client]], minlength=10) for u in updates]).double()
    shares, teachers = counts / counts.sum(0).clamp(min=1), [network_with(simulation, one).eval() for one in models]
    generator, student = (
        strategy.generator(simulation.task).double(),
        network_with(simulation, average(models, strategy.aggregation_weights(updates))),
    )
    generator.load_state_dict(state["generator"])
    adam, names = torch.optim.Adam(generator.parameters(), lr=0.01, eps=1e-3), [name for name, _ in generator.named_parameters()]
    kept = state.get("generator_optimizer", {})
    if kept:
        fields = {i: {f: kept[f"{f}/{name}"].clone() for f in ("step", "exp_avg", "exp_avg_sq")} for i, name in enumerate(names)}
        adam.load_state_dict({"state": fields, "param_groups": adam.state_dict()["param_groups"]})
    sgd = torch.optim.SGD(student.parameters(), lr=0.1 * 0.5 ** (server_round - 1))
    for iteration in range(strategy.iterations):
        y, noise = strategy.draw_inputs(server, counts.sum(0), iteration, "generator", len(updates))
        student.eval(), generator.train()
        for k, teacher in enumerate(teachers):
            weight, x = shares[k][y[k]], generator(noise[k], y[k])
            t, s, flat, far = teacher(x).logits, student(x).logits, x.flatten(1), noise[k]
            pairs = (flat[:, None] - flat).abs().mean(-1) * (far[:, None] - far).square().mean(-1)
            discrepancy = ((s - t.detach()).abs().mean(-1) * weight).mean()
            adam.zero_grad()
            (-discrepancy + F.cross_entropy(t, y[k]) * weight.mean() + (-pairs.mean()).exp() / len(updates)).backward()
            adam.step()
        y, noise = strategy.draw_inputs(server, counts.sum(0), iteration, "student", strategy.student_steps)
        student.train(), generator.eval()
        for label, far in zip(y, noise):
            with torch.no_grad():
                x = generator(far, label)
                target = sum(shares[k][label][:, None] * teacher(x).logits.softmax(-1) for k, teacher in enumerate(teachers))
            sgd.zero_grad()
            (-(target * student(x).logits.log_softmax(-1))).mean().backward()
            sgd.step()
    return generator.state_dict(), adam, student.state_dict()


def test_server_equals_plain_loop_over_two_rounds():
    """Generator and moments continue from the state. The model's learning rate decays."""
    simulation, server, state, updates = trained_clients("fedftg", "precision=float64", "strategy.student_lr_decay=0.5")
    for number in (1, 2):
        at = replace(server, seed=simulation.seed / "round" / number / "server")
        generator, adam, student = plain_fedftg(simulation, at, state, updates, number)
        after, _ = simulation.strategy.aggregate(at, state, updates, number)
        check_close(after["generator"], generator)
        check_close(after["model"], student)
        names = [name for name, _ in simulation.strategy.generator(simulation.task).named_parameters()]
        for i, name in enumerate(names):
            assert_close(after["generator_optimizer"][f"exp_avg/{name}"], adam.state_dict()["state"][i]["exp_avg"], rtol=1e-7, atol=1e-11)
            assert after["generator_optimizer"][f"step/{name}"] == number * 2 * 3
        state = clone({part: {key: value.contiguous() for key, value in tensors.items()} for part, tensors in after.items()})


def test_labels_follow_label_counts():
    simulation, _ = small_simulation("strategy=fedftg", *strategy_overrides("fedftg"), "strategy.batch_size=100")
    counts = torch.tensor([0.0, 30, 0, 10, 0, 0, 0, 0, 0, 0])
    server = simulation.federation().server
    y, noise = simulation.strategy.draw_inputs(server, counts, 0, "student", 50)
    assert y.unique().tolist() == [1, 3] and (y == 1).double().mean().item() == pytest.approx(0.75, abs=0.03)
    assert y.shape == (50, 100) and noise.shape == (50, 100, 6) and noise.std().item() == pytest.approx(1, abs=0.02)
    again, other = (simulation.strategy.draw_inputs(server, counts, number, "student", 50)[0] for number in (0, 1))
    assert torch.equal(again, y) and not torch.equal(other, y)


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


def test_generator_state_is_kept_over_rounds():
    ran = small_run("strategy=fedftg", *strategy_overrides("fedftg"))
    assert {int(v) for k, v in ran.state["generator_optimizer"].items() if k.startswith("step/")} == {3 * 2 * 3}
    assert ran.state["generator"]["begin.num_batches_tracked"] == 3 * 2 * 3
    once = small_run("strategy=fedftg", *strategy_overrides("fedftg"), "rounds=1")
    assert not same_tensors(once.state["generator"], ran.state["generator"]) and ran.simulation.strategy.broadcast_parts == ("model",)
