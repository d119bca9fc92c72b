"""Co-Boosting: each of its equations against the public code, and its server against a plain loop."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fedkd.distillation.image_synthesis import Synthesis, ensemble_logits, ensemble_parts
from fedkd.federation.aggregation import average
from fedkd.losses.kl import kl_divergence
from fedkd.models.ensemble import Ensemble, Member, combine_logits
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from strategies.coboosting import move_weights, perturb_images
from tests.public_code import public_code
from tests.small_runs import same_tensors, small_run, small_simulation, strategy_overrides
from tests.strategies.server_tools import FixedImages, LinearClient, check_close, members, network_with, trained_clients

CODE = public_code("coboost")


NETWORK = LinearClient(CODE)
TEACHERS = [Member(NETWORK, {"weight": w, "bias": b}) for w, b in zip(CODE["client_weight"], CODE["client_bias"])]
STUDENT = {"weight": CODE["student_weight"], "bias": CODE["student_bias"]}
WEIGHTS = CODE["weights"].flatten()
SHARES = WEIGHTS / WEIGHTS.sum()
close = lambda actual, expected: assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def loss_of_images(weights: torch.Tensor | None = SHARES, **changes):
    """The generator's loss of the public code's images, its terms, and the images as parameters."""
    values = {"bn": 0.0, "oh": 1.0, "adv": 1.0, "hardness": 1.0, "adversarial": "all", "adversarial_temperature": 3.0, **changes}
    synthesis, module = Synthesis(FixedImages, torch.optim.Adam, 1, 6, **values), FixedImages(CODE["images"])
    broadcast, networks = {**ensemble_parts(TEACHERS, weights), "student": STUDENT}, (NETWORK,) * len(TEACHERS)
    batch = Batch(None, CODE["labels"])
    value, terms = synthesis.loss(FunctionalModel(module), batch, broadcast, {}, networks=networks, student_network=NETWORK)
    return value, terms, module.x


def test_ensemble():
    """The public code's logits. All weights times a number is the same ensemble, and each class can have weights of its own."""
    logits = ensemble_logits(TEACHERS, CODE["images"])
    close(combine_logits(logits, SHARES), CODE["ensemble_logits"])
    close(Ensemble([FunctionalModel(NETWORK).at(one.tensors) for one in TEACHERS], SHARES)(CODE["images"]).logits, CODE["ensemble_logits"])
    by_class = SHARES.expand(5, 4) * torch.tensor([1.0, 1, 1, 2, 0])[:, None]
    scale = torch.tensor([0.0, 0, 2, 0, 2, 2])[:, None]  # labels 4, 4, 3, 4, 3, 3
    close(combine_logits(logits, by_class, CODE["labels"]), scale * CODE["ensemble_logits"])


def test_generator_loss():
    value, terms, x = loss_of_images()
    close(value.detach(), CODE["loss_generator"])
    close(terms["oh"].detach(), CODE["loss_label_hs1"])
    close(terms["adv"].detach(), CODE["loss_adversarial"])
    close(torch.autograd.grad(value, x)[0], CODE["grad_images"])
    close(loss_of_images(hardness=2.0)[1]["oh"].detach(), CODE["loss_label_hs2"])


def test_generator_loss_is_that_of_dense_in_the_limit():
    """Without hardness, at temperature 1, with equal weights and DENSE's images in the divergence."""
    same = {"hardness": 0.0, "adversarial_temperature": 1.0, "adversarial": "disagreement"}
    dense = Synthesis(FixedImages, torch.optim.Adam, 1, 6, 0.0, 1.0, 1.0)
    module, parts = FixedImages(CODE["images"]), {**ensemble_parts(TEACHERS), "student": STUDENT}
    networks = {"networks": (NETWORK,) * 4, "student_network": NETWORK}
    expected, _ = dense.loss(FunctionalModel(module), Batch(None, CODE["labels"]), parts, {}, **networks)
    value, _, x = loss_of_images(torch.full((4,), 0.25, dtype=WEIGHTS.dtype), **same)
    close(value, expected)
    close(*(torch.autograd.grad(loss, leaf)[0] for loss, leaf in ((value, x), (expected, module.x))))
    for change in ({"hardness": 1.0}, {"adversarial_temperature": 3.0}, {"adversarial": "all"}):
        assert not torch.allclose(loss_of_images(None, **{**same, **change})[0], expected)


def test_images_of_the_divergence():
    """Some images, and not all, are classified by the ensemble alone."""
    z, s = combine_logits(ensemble_logits(TEACHERS, CODE["images"]), SHARES), FunctionalModel(NETWORK).at(STUDENT)(CODE["images"]).logits
    divergence, right = kl_divergence(z, s, 3.0), (z.argmax(-1) == CODE["labels"]) & (s.argmax(-1) != CODE["labels"])
    assert 0 < right.sum() < 6
    close(loss_of_images(adversarial="ensemble_right")[1]["adv"].detach(), -(divergence * right).mean())
    close(loss_of_images(adversarial="disagreement")[1]["adv"].detach(), -(divergence * (z.argmax(-1) != s.argmax(-1))).mean())


@pytest.mark.parametrize("epoch", [1, 50])
def test_weights(epoch):
    """The public code's step. It depends on the ratios of the weights alone, up to the step itself, and never ends with zeros."""
    logits, step = ensemble_logits(TEACHERS, CODE["images"]), 0.01 * 0.99**epoch
    moved = move_weights(WEIGHTS, logits, CODE["labels"], step)
    close(moved, CODE[f"weights_after_epoch{epoch}"].flatten())
    half = move_weights(WEIGHTS / 2, logits, CODE["labels"], step)
    assert torch.equal((half - WEIGHTS / 2).sign(), (moved - WEIGHTS).sign())
    assert move_weights(WEIGHTS, logits, CODE["labels"], 10.0).sort().values.tolist() == [0.0, 1.0, 1.0, 1.0]
    one = torch.tensor([1e-3], dtype=WEIGHTS.dtype)
    for labels in (CODE["labels"], 4 - CODE["labels"]):
        assert move_weights(one, logits[:1], labels, 0.1).item() > 0


def test_perturbed_images_and_distillation():
    moved = perturb_images(CODE["images"], CODE["ods_direction"], TEACHERS, SHARES, 4.0, 8 / 255)
    close(moved, CODE["ods_images"])
    strategy = small_simulation("strategy=coboosting", *strategy_overrides("coboosting"))[0].strategy
    teacher = combine_logits(ensemble_logits(TEACHERS, moved), SHARES)
    batch = Batch(None, CODE["labels"], {"image": moved, "teacher": teacher})
    close(strategy.distillation(FunctionalModel(NETWORK).at(STUDENT), batch, {}, {})[0], CODE["loss_distil"])


def test_best_images_are_kept():
    """The images of the step with the least loss, as a plain loop finds them, and none from another loss."""
    simulation, server, _, updates = trained_clients("coboosting", "precision=float64", "strategy.generator_steps=6")
    strategy, student = simulation.strategy, Member(simulation.model, simulation.initial)
    teachers, seen = strategy.teachers(server, updates), []
    loss = lambda *arguments, **options: (seen.append(Synthesis.loss(strategy.synthesis, *arguments, **options)), seen[-1])[1]
    object.__setattr__(strategy.synthesis, "loss", loss)
    images, terms = strategy.synthesis(teachers, student, server.task, server.seed)
    best = min(seen, key=lambda result: result[0].item())
    assert_close(images, best[1]["images"].detach(), rtol=0, atol=0)
    assert set(terms) == {"loss", "bn", "oh", "adv"} and len(seen) == 6
    last, _ = replace(strategy.synthesis, keep="last")(teachers, student, server.task, server.seed)
    assert all(not torch.equal(last, result[1]["images"]) for result in seen), "the last images are made after the last step"


def test_server_equals_plain_loop():
    """Weights from the second epoch on, before the new images join the pool. Every step has images of its own."""
    values = ("strategy.epochs=3", "precision=float64", "local_steps=15", "optimizer.lr=0.1", "strategy.mu=0.05")
    simulation, server, state, updates = trained_clients("coboosting", *values)
    strategy, models = simulation.strategy, [u.state["model"] for u in updates]
    after, metrics = strategy.aggregate(server, state, updates, 1)
    student, teachers = network_with(simulation, average(models, strategy.aggregation_weights(updates))), members(simulation, models)
    sgd = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    weights, pool, y, losses = torch.full((3,), 1 / 3, dtype=torch.float64), torch.empty(0, 1, 8, 8).double(), torch.empty(0).long(), []
    for epoch in range(3):
        seed, size = server.seed / "epoch" / epoch, strategy.batch_size
        at = Member(simulation.model, {key: value.clone() for key, value in student.state_dict().items()})
        x, _ = strategy.synthesis(teachers, at, server.task, seed, weights / weights.sum())
        for index in torch.randperm(len(pool), generator=(seed / "weights").torch()).split(size) if epoch else ():
            weights = move_weights(weights, ensemble_logits(teachers, pool[index]), y[index], 0.05 * 0.99**epoch)
        pool = torch.cat([pool, x])
        y = torch.cat([y, torch.randint(10, (size,), generator=(seed / "labels").torch())])
        order, random = torch.randperm(len(pool), generator=(seed / "order").torch()), (seed / "directions").torch()
        losses.append([])
        sgd.param_groups[0]["lr"] = 0.01 * (1, 0.75, 0.25)[epoch]
        directions = torch.rand(epoch + 1, size, 10, generator=random, dtype=torch.float64) * 2 - 1
        for index, u in zip(order.split(size), directions):
            moved = perturb_images(pool[index], u, teachers, weights / weights.sum(), 4.0, 8 / 255)
            with torch.no_grad():
                z = combine_logits(ensemble_logits(teachers, moved), weights / weights.sum())
            sgd.zero_grad()
            loss = 16 * F.kl_div((student(moved).logits / 4).log_softmax(-1), (z / 4).softmax(-1), reduction="batchmean")
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 10)
            sgd.step()
            losses[-1].append(loss.item())
    check_close(after["model"], student.state_dict())
    assert metrics["distillation_loss"].item() == pytest.approx(sum(sum(part) / len(part) for part in losses) / 3, rel=1e-9)
    kept = torch.stack([after["ensemble"][f"member-{k}"] for k in range(3)])
    close(kept, weights / weights.sum())
    assert kept.unique().numel() > 1 and metrics["largest_ensemble_weight"] == kept.max()
    assert torch.equal(after["made"]["y"], y[-strategy.batch_size :])


def test_kept_ensemble_is_weighted():
    ran = small_run("strategy=coboosting", *strategy_overrides("coboosting"), "strategy.mu=0.05")
    server, x = ran.simulation.federation().server, ran.simulation.global_test.images(torch.arange(5))
    ensemble = ran.simulation.strategy.extra_models(server, ran.state)["ensemble_test_accuracy"]
    names = [name for name in ran.state if name.startswith("member-")]
    models = [FunctionalModel(ran.simulation.model).at(ran.state[name]) for name in names]
    weights = [ran.state["ensemble"][name] for name in names]
    assert len(set(map(float, weights))) > 1
    assert_close(ensemble(x).logits, sum(weight * model(x).logits for weight, model in zip(weights, models)))
    equal = {
        key: {**value, **{name: torch.tensor(1 / 3) for name in names}} if key == "ensemble" else value for key, value in ran.state.items()
    }
    other = ran.simulation.strategy.extra_models(server, equal)["ensemble_test_accuracy"]
    assert not torch.equal(other(x).logits, ensemble(x).logits)
    assert same_tensors({"": ran.state["model"]}, {"": equal["model"]})
