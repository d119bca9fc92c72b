"""What a server does with its clients' models beyond their mean: FedDF, DENSE, FedFTG, and what they are made of.

Losses against their equations, whole server rounds against plain loops, and the laws they keep.
"""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fedkd.distillation.image_synthesis import Synthesis, stacked, unstacked
from fedkd.distillation.logit_distillation import cosine, distill_logits, logits_on
from fedkd.federation.aggregation import average
from fedkd.losses.batchnorm_statistics import statistics_distance
from fedkd.losses.diversity import noise_distances
from fedkd.losses.kl import kl_divergence
from fedkd.models.generators import ImageConv
from fedkd.seed import Seed
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, snapshot
from fedkd.types import Examples, Task
from tests import oracles
from tests.conftest import options, run, same, settle

SERVER_SIDE = ("feddf", "feddfusion", "dense", "fedftg")
DOUBLE = torch.float64


def numpy(tensors):
    return {name: value.detach().numpy() for name, value in tensors.items()}


def clones(tree):
    return {key: clones(value) if isinstance(value, dict) else value.clone() for key, value in tree.items()}


def perceptrons(*overrides: str, number: int = 2, width: int = 8):
    """A small world whose network :func:`tests.oracles.mlp` computes too, and ``number`` networks around it."""
    home, _ = settle("model=mlp", f"model.widths=[{width}]", "precision=float64", *overrides)
    random = np.random.default_rng(0)
    models = [{k: v + 0.3 * torch.from_numpy(random.standard_normal(v.shape)) for k, v in home.initial.items()} for _ in range(number)]
    return home, models, random


def trained(name: str, *overrides: str):
    """A strategy, its server in round 1, its state before, and the updates of three clients that trained."""
    home, _ = settle(f"strategy={name}", *options(name), *overrides)
    server = home.federation().server
    state = home.strategy.init_server(server)
    shared = {part: state[part] for part in home.strategy.broadcast_parts}
    updates = [home.strategy.train(home.client(k, 1), shared, None, 1)[0] for k in range(3)]
    return home, replace(server, seed=server.seed / "round" / 1 / "server"), state, updates


def network(home, tensors) -> nn.Module:
    """A copy of the server's network with ``tensors``, in train mode."""
    model = deepcopy(home.model)
    model.load_state_dict(tensors)
    return model.train()


def close(found, expected) -> None:
    """Equal but for rounding in double precision."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(found[key], value, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}")


# ---------------------------------------------------------------------------------------------------------------- distil
@pytest.fixture(scope="module")
def task_of_distilling():
    """A network with BatchNorm, a teacher's logits of its images, and the material of ten steps."""
    home, _ = settle("strategy=feddf", *options("feddf"))
    images, where = home.held.public_data, torch.randint(100, (10, 16), generator=Seed(0).torch())
    teacher = logits_on(home.model, {k: v + 0.1 for k, v in home.initial.items()}, images, 100, torch.float32)

    def piece(steps: slice) -> Batches:
        return Batches(images.y[where[steps]], where[steps], images, torch.float32, {"teacher": teacher[where[steps]]})

    return partial(distill_logits, home.model, home.initial, piece), home


def towards(model, batch, shared, own):
    return kl_divergence(batch.teacher, model(batch.x).logits).mean(), {}


@pytest.mark.parametrize("every", [1, 3, 10, 99])
@pytest.mark.parametrize("schedule", [None, cosine(10)])
def test_pieces_are_one_training_bit_for_bit(task_of_distilling, every, schedule):
    """With the moments of a fused Adam, BatchNorm statistics, and the schedule carried on."""
    go, _ = task_of_distilling
    adam = partial(torch.optim.Adam, lr=1e-2, fused=True)
    whole, pieces = (go(10, towards, adam, schedule=schedule, every=n) for n in (None, every))
    assert same(pieces.tensors, whole.tensors) and pieces.num_steps == whole.num_steps == 10
    assert pieces.means["loss"].item() == pytest.approx(whole.means["loss"].item(), rel=1e-6)


def test_it_stops_when_nothing_is_gained_and_keeps_what_was_best(task_of_distilling):
    """Scores of the start and after 2, 4, 6, 8 steps: the second piece is the best, and four steps without a gain are enough."""
    go, home = task_of_distilling
    scores, seen = [0.3, 0.4, 0.5, 0.5, 0.1, 0.9], []

    def judge(tensors):
        seen.append(clones(tensors))
        return scores[len(seen) - 1]

    sgd = partial(torch.optim.SGD, lr=0.1)
    stopped = go(10, towards, sgd, every=2, patience=4, judge=judge)
    assert len(seen) == 5 and stopped.num_steps == 8 and same(seen[0], home.initial)
    assert same(stopped.tensors, seen[2]) and same(stopped.tensors, go(4, towards, sgd).tensors)
    assert go(10, towards, sgd, every=2, patience=4).num_steps == 10, "nobody judges: all steps are done"
    assert go(10, towards, sgd, every=2, judge=lambda tensors: 0.0).num_steps == 10, "no patience: all steps are done"


def test_without_a_gain_the_start_is_left(task_of_distilling):
    go, home = task_of_distilling
    worse = go(10, towards, partial(torch.optim.SGD, lr=0.1), every=5, patience=5, judge=lambda tensors: float(same(tensors, home.initial)))
    assert same(worse.tensors, home.initial) and worse.num_steps == 5
    nothing = go(0, towards, partial(torch.optim.SGD, lr=0.1))
    assert same(nothing.tensors, home.initial) and nothing.means == {} and nothing.num_steps == 0


def test_the_schedule_is_the_cosine_that_torch_has():
    leaf = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([leaf], lr=1.0)
    schedule, rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7), []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert cosine(7) == pytest.approx(rates) and cosine(4) == pytest.approx([1, 0.8535534, 0.5, 0.1464466]) and cosine(0) == []


# ----------------------------------------------------------------------------------------------------------------- FedDF
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_feddf_s_loss_is_the_equation(kind):
    home, models, _ = perceptrons("strategy=feddf", *options("feddf"), f"strategy.average={kind}", number=3)
    x = home.held.public_data.images(torch.arange(7), DOUBLE)
    teacher = home.strategy.teacher(home.federation().server, models, home.held.public_data.subset(torch.arange(7)))
    p = oracles.ensemble(np.stack([oracles.mlp(numpy(one), x.numpy()) for one in models]), kind)
    np.testing.assert_allclose(teacher.softmax(-1).numpy(), p, rtol=1e-12)
    student = network(home, home.initial)
    value, _ = home.strategy.distillation(FunctionalModel(student), Batch(x, torch.zeros(7), {"teacher": teacher}), {}, {})
    at = numpy(dict(student.named_parameters()))

    def equation(head) -> float:
        return oracles.divergence(p, oracles.mlp({**at, **head}, x.numpy())).mean()

    heads = {key: at[key] for key in ("head.weight", "head.bias")}
    assert value.item() == pytest.approx(equation(heads), rel=1e-12) and value.item() > 0.01
    for name, slope in oracles.gradient(equation, heads).items():
        (found,) = torch.autograd.grad(value, student.get_parameter(name), retain_graph=True)
        np.testing.assert_allclose(found.numpy(), slope, atol=1e-8)


def test_the_two_averages_are_two():
    """Of teachers that are sure of unlike classes the mean logit is unsure, and so is the mean probability, but otherwise."""
    logits = np.array([[[10.0, 0, 0]], [[0, 4.0, 0]]])
    np.testing.assert_allclose(oracles.ensemble(logits, "logits"), oracles.softmax(np.array([[5.0, 2, 0]])))
    assert oracles.ensemble(logits, "probabilities")[0, 0] < 0.6 < oracles.ensemble(logits, "logits")[0, 0]


def test_a_probability_of_nothing_does_not_break_the_ensemble():
    home, _ = settle("strategy=feddf", *options("feddf"), "model=mlp", "model.widths=[4]", "strategy.average=probabilities")
    sure = {key: torch.zeros_like(value) for key, value in home.initial.items()} | {"head.bias": torch.tensor([1e4] + [0.0] * 9)}
    teacher = home.strategy.teacher(home.federation().server, [sure, sure], home.held.public_data.subset(torch.arange(2)))
    assert torch.isfinite(teacher).all() and torch.isfinite(kl_divergence(teacher, torch.zeros(2, 10))).all()
    assert kl_divergence(teacher, torch.zeros(2, 10)).tolist() == pytest.approx([np.log(10)] * 2, rel=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_feddf_s_server_is_a_plain_loop(kind, schedule):
    """From the clients' mean, by examples; teachers in eval mode, the student in train mode; Adam with its schedule."""
    options_ = (f"strategy.average={kind}", f"strategy.schedule={schedule}", "strategy.steps=5", "strategy.every=2", "precision=float64")
    home, server, state, updates = trained("feddf", *options_)
    after, metrics = home.strategy.aggregate(server, state, updates, 1)
    sizes = [len(home.partition.train[k]) for k in range(3)]
    mean = average([u.state["model"] for u in updates], [size / sum(sizes) for size in sizes])
    assert same(after["average"], mean)
    student, teachers = network(home, mean), [network(home, u.state["model"]).eval() for u in updates]
    adam = torch.optim.Adam(student.parameters(), lr=1e-3, eps=1e-3)
    where = torch.randint(len(home.held.public_data), (5, 16), generator=(server.seed / "public").torch())
    losses = []
    for step, index in enumerate(where):
        x = home.held.public_data.images(index, DOUBLE)
        with torch.no_grad():
            logits = torch.stack([teacher(x).logits for teacher in teachers])
            p = logits.mean(0).softmax(-1) if kind == "logits" else logits.softmax(-1).mean(0)
        for group in adam.param_groups:
            group["lr"] = 1e-3 * (0.5 * (1 + np.cos(np.pi * step / 5)) if schedule == "cosine" else 1)
        adam.zero_grad()
        losses.append((p * (p.log() - student(x).logits.log_softmax(-1))).sum(-1).mean())
        losses[-1].backward()
        adam.step()
    close(after["model"], student.state_dict())
    assert metrics["distillation_loss"].item() == pytest.approx(sum(losses).item() / 5, rel=1e-9) and metrics["distillation_steps"] == 5


def divergence_on(home, tensors, teacher, images) -> float:
    """The mean KL of a model, in eval mode, to a teacher's logits."""
    return kl_divergence(teacher, logits_on(home.model, tensors, images, 500, home.dtype)).mean().item()


def test_feddf_comes_nearer_to_the_ensemble_than_the_mean_it_begins_from():
    home, server, state, updates = trained("feddf", "strategy.steps=150", "local_steps=20", "optimizer.lr=0.1", "partition.alpha=0.1")
    teacher = home.strategy.teacher(server, [u.state["model"] for u in updates], home.held.public_data)
    after, _ = home.strategy.aggregate(server, state, updates, 1)
    before, now = (divergence_on(home, after[part], teacher, home.held.public_data) for part in ("average", "model"))
    assert now < 0.5 * before, (before, now)


def test_a_student_of_one_client_converges_to_it():
    """The mean of one client is that client, with nothing left to learn; from other weights the divergence falls towards nothing."""
    home, server, state, updates = trained("feddf", "model=mlp", "strategy.steps=300", "local_steps=20", "optimizer.lr=0.1")
    _, metrics = home.strategy.aggregate(server, state, updates[:1], 1)
    assert metrics["distillation_loss"].item() < 1e-6
    teacher = home.strategy.teacher(server, [updates[0].state["model"]], home.held.public_data)
    where = torch.randint(len(home.held.public_data), (300, 32), generator=Seed(1).torch())
    piece = lambda steps: Batches(
        home.held.public_data.y[where[steps]], where[steps], home.held.public_data, home.dtype, {"teacher": teacher[where[steps]]}
    )
    adam, values = partial(torch.optim.Adam, lr=3e-3), [divergence_on(home, home.initial, teacher, home.held.public_data)]
    for steps in (30, 100, 300):
        done = distill_logits(home.model, home.initial, piece, steps, home.strategy.distillation, adam)
        values.append(divergence_on(home, done.tensors, teacher, home.held.public_data))
    assert values == sorted(values, reverse=True) and values[-1] < 0.05 * values[0], values


def test_feddf_is_judged_by_the_held_out_examples_and_by_nothing_else():
    home, server, state, updates = trained(
        "feddf", "validation_fraction=0.2", "strategy.steps=6", "strategy.every=2", "strategy.patience=2"
    )
    images, labels = home.held.validation.images(torch.arange(len(home.held.validation))), home.held.validation.y
    tensors = updates[0].state["model"]
    right = network(home, tensors).eval()(images).logits.argmax(-1) == labels
    assert home.strategy.judge(server, tensors) == pytest.approx(right.double().mean().item())
    parts = [index for shards in (home.partition.train, home.partition.test) for index in shards]
    assert home.held.validation.rows.numel() > 100 and home.held.scored is home.test
    held = set(home.held.validation.rows.tolist())
    assert not held & {int(i) for index in parts[:6] for i in index} and not held & set(home.held.public_data.rows.tolist())
    best = home.strategy.judge(server, home.strategy.aggregate(server, state, updates, 1)[0]["model"])
    assert best >= home.strategy.judge(server, average([u.state["model"] for u in updates], home.strategy.aggregation_weights(updates)))
    where_judged, _ = settle("strategy=feddf", *options("feddf"), "validation_fraction=0.2", "evaluation.split=validation")
    assert where_judged.federation().server.validation is None, "what the run is measured by does not stop it"


def test_feddf_stops_early_where_it_harms():
    """With a learning rate that ruins the student its start stays, and the steps are those of one patience."""
    home, server, state, updates = trained(
        "feddf", "validation_fraction=0.2", "strategy.steps=20", "strategy.every=2", "strategy.patience=4", "strategy.optimizer.lr=1.0",
        "local_steps=30", "optimizer.lr=0.1", "partition.alpha=1000",
    )  # fmt: skip
    after, metrics = home.strategy.aggregate(server, state, updates, 1)
    assert metrics["distillation_steps"] == 4 and same(after["model"], after["average"])


def test_feddf_with_a_public_set_smaller_than_a_batch():
    home, server, state, updates = trained("feddf")
    few = replace(server, public_data=home.held.public_data.subset(torch.arange(3)))
    after, _ = home.strategy.aggregate(few, state, updates, 1)
    assert not same(after["model"], after["average"])


@pytest.mark.parametrize("name", ["feddf", "feddfusion"])
def test_public_labels_have_no_say(name):
    home, server, state, updates = trained(name)
    other = replace(
        server, public_data=replace(home.held.public_data, y=torch.randint(10, (len(home.held.public_data),), generator=Seed(3).torch()))
    )
    results = [home.strategy.aggregate(one, state, updates, 1) for one in (server, other)]
    assert same(results[0][0], results[1][0]) and same(results[0][1], results[1][1])


# ------------------------------------------------------------------------------------------------- what networks have seen
def test_the_distance_of_statistics_is_that_of_means_and_of_variances():
    """Channel 0 holds 1, 3, 5, 7 with mean 4 and variance 5, channel 1 zeros; kept are means (1, 4) and variances (5, 12)."""
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]], [[[5.0, 7.0]], [[0.0, 0.0]]]])
    found = statistics_distance(x, torch.tensor([1.0, 4.0]), torch.tensor([5.0, 12.0]))
    assert found.item() == pytest.approx(12 + 5)
    flat = torch.tensor([[1.0], [3.0], [5.0], [7.0]])
    assert statistics_distance(flat, torch.tensor([4.0]), torch.tensor([5.0])) == 0, "the variance divides by n"


class Pictures(nn.Module):
    """A generator that is its images: so gradients by images can be looked at."""

    noise_size = 3

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(x)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.x


@pytest.fixture(scope="module")
def normed():
    """Three small networks with BatchNorm whose statistics and weights are all unlike, and images for them."""
    home, _ = settle("strategy=dense", *options("dense"), "model.widths=[2,3]", "model.embedding_size=4", "precision=float64")
    random, models = np.random.default_rng(0), []
    for _ in range(3):
        noise = {k: torch.from_numpy(np.asarray(random.standard_normal(v.shape))) for k, v in home.initial.items()}
        moved = {k: v + 0.4 * noise[k] if v.is_floating_point() else v for k, v in home.initial.items()}
        models.append({k: v.abs() + 0.2 if k.endswith("var") else v for k, v in moved.items()})
    return home, models, random.standard_normal((5, 1, 8, 8)), np.array([0, 3, 3, 7, 9])


def synthesised(home, models, x, y, **weights):
    """The loss of images for two teachers and a student, and its terms."""
    synthesis = replace(home.strategy.synthesis, **weights)
    module = Pictures(torch.from_numpy(x))
    shared = {"teachers": stacked(models[:2]), "student": models[2]}
    value, terms = synthesis.loss(FunctionalModel(module), Batch(None, torch.from_numpy(y)), shared, {}, network=home.model)
    return value, {name: term.item() for name, term in terms.items()}, module.x


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, 2.0, 5.0)])
def test_dense_s_synthesis_is_the_equation(normed, weights):
    """Statistics by hand from what enters every layer of every teacher; the value, every term, and the gradient by the images."""
    home, models, x, y = normed
    bn, oh, adv = weights
    value, terms, leaf = synthesised(home, models, x, y, bn=bn, oh=oh, adv=adv)
    arrays = [numpy(one) for one in models]
    equation = lambda at: oracles.dense_synthesis(at["x"], y, arrays[:2], arrays[2], bn, oh, adv)
    expected, expected_terms = equation({"x": x})
    assert value.item() == pytest.approx(expected, rel=1e-10)
    assert terms == pytest.approx(expected_terms, rel=1e-10) and terms["bn"] > 0.1 and terms["adv"] < -1e-3
    (found,) = torch.autograd.grad(value, leaf)
    slope = oracles.gradient(lambda at: equation(at)[0], {"x": x})["x"]
    np.testing.assert_allclose(found.numpy(), slope, atol=1e-6)


def test_the_adversary_counts_where_ensemble_and_student_name_unlike_classes(normed):
    """Of forty images some are seen alike: those alone have no adversary, and of all it is the others' share."""
    home, (one, *_), *_ = normed
    random = np.random.default_rng(1)
    x, y = random.standard_normal((40, 1, 8, 8)), np.arange(40) % 10
    moved = {
        key: value + 0.3 * torch.from_numpy(random.standard_normal(value.shape)) if "head" in key else value for key, value in one.items()
    }
    near = [one, one, moved]
    mean, own = (oracles.fedgen_cnn(numpy(weights), x)[0].argmax(-1) for weights in (one, moved))
    unlike = mean != own
    assert 5 < unlike.sum() < 35
    whole, some, none = (synthesised(home, near, x[rows], y[rows])[1]["adv"] for rows in (unlike | True, unlike, ~unlike))
    assert none == 0 and whole == pytest.approx(some * unlike.mean()) and whole < 0


def test_a_student_that_is_the_ensemble_has_no_adversary(normed):
    home, models, x, y = normed
    _, terms, _ = synthesised(home, [models[0], models[0], models[0]], x, y)
    assert terms["adv"] == 0


def test_synthesis_moves_neither_teachers_nor_student_nor_their_statistics(normed):
    home, models, *_ = normed
    teachers, before = stacked(models[:2]), clones({str(k): one for k, one in enumerate(models)})
    for step in unstacked(teachers):
        assert any(same(step, one) for one in models[:2])
    home.strategy.synthesis(home.model, teachers, models[2], home.task, Seed(0))
    assert same({str(k): one for k, one in enumerate(models)}, before) and same(teachers, stacked(models[:2]))


# ----------------------------------------------------------------------------------------------------------------- DENSE
@pytest.mark.parametrize("temperature", [20.0, 1.0])
def test_dense_s_distillation_is_the_equation(temperature):
    home, (teacher, _), random = perceptrons("strategy=dense", *options("dense"), f"strategy.temperature={temperature}")
    x, student = random.random((6, 1, 8, 8)), network(home, home.initial)
    said = oracles.mlp(numpy(teacher), x)
    batch = Batch(torch.from_numpy(x), torch.zeros(6), {"teacher": torch.from_numpy(said)})
    value, _ = home.strategy.distillation(FunctionalModel(student), batch, {}, {})
    at = numpy(dict(student.named_parameters()))
    equation = lambda head: oracles.kl(said, oracles.mlp({**at, **head}, x), temperature).mean()
    heads = {key: at[key] for key in ("head.weight", "head.bias")}
    assert value.item() == pytest.approx(equation(heads), rel=1e-10) and value.item() > 0.01
    for name, slope in oracles.gradient(equation, heads).items():
        (found,) = torch.autograd.grad(value, student.get_parameter(name), retain_graph=True)
        np.testing.assert_allclose(found.numpy(), slope, atol=1e-6)


def plain_synthesis(home, seed, models, student):
    """A batch of images, step by step: a fresh generator and noise, labels sorted, all networks in eval mode."""
    strategy, task = home.strategy, home.task
    with (seed / "generator").globally():
        generator = strategy.generator(task).double().train()
    noise = torch.randn(strategy.batch_size, generator.noise_size, generator=(seed / "noise").torch()).double().requires_grad_()
    y = torch.randint(10, (strategy.batch_size,), generator=(seed / "labels").torch()).sort().values
    adam = torch.optim.Adam([*generator.parameters(), noise], lr=1e-3, betas=(0.5, 0.999), eps=1e-3)
    teachers, student = [network(home, one).eval() for one in models], network(home, student).eval()
    for _ in range(strategy.generator_steps):
        entering = []
        keep = lambda layer, inputs, seen=entering: seen.append((layer, inputs[0]))
        norms = [layer for teacher in teachers for layer in teacher.modules() if isinstance(layer, nn.BatchNorm2d)]
        hooks = [layer.register_forward_pre_hook(keep) for layer in norms]
        adam.zero_grad()
        x = generator(noise, y)
        z, s = torch.stack([teacher(x).logits for teacher in teachers]).mean(0), student(x).logits
        for hook in hooks:
            hook.remove()
        far = sum(
            (value.var((0, 2, 3), unbiased=False) - layer.running_var).norm() + (value.mean((0, 2, 3)) - layer.running_mean).norm()
            for layer, value in entering
        )
        apart = F.kl_div(s.log_softmax(-1), z.softmax(-1), reduction="none").sum(-1)
        (far + F.cross_entropy(z, y) - (apart * (z.argmax(-1) != s.argmax(-1))).mean()).backward()
        adam.step()
    with torch.no_grad():
        return generator(noise, y), y


def test_dense_s_server_is_a_plain_loop():
    """Images, then a pass over all so far, then images against the student that has learnt from them: from the clients' models alone."""
    home, server, state, updates = trained("dense", "strategy.epochs=3", "precision=float64", "local_steps=15", "optimizer.lr=0.1")
    after, metrics = home.strategy.aggregate(server, state, updates, 1)
    models, pool, losses = [u.state["model"] for u in updates], torch.empty(0, 1, 8, 8, dtype=DOUBLE), []
    student = network(home, average(models, home.strategy.aggregation_weights(updates)))
    sgd, teachers = torch.optim.SGD(student.parameters(), lr=0.005, momentum=0.9), [network(home, one).eval() for one in models]
    for epoch in range(3):
        seed = server.seed / "epoch" / epoch
        pool = torch.cat([pool, plain_synthesis(home, seed, models, student.state_dict())[0]])
        assert len(pool) == (epoch + 1) * home.strategy.batch_size
        order = torch.randperm(len(pool), generator=(seed / "order" / 0).torch())
        for index in order.split(home.strategy.batch_size):
            with torch.no_grad():
                z = torch.stack([teacher(pool[index]).logits for teacher in teachers]).mean(0)
            sgd.zero_grad()
            q = (student(pool[index]).logits / 20).log_softmax(-1)
            losses.append((epoch, 400 * F.kl_div(q, (z / 20).softmax(-1), reduction="batchmean")))
            losses[-1][1].backward()
            sgd.step()
    close(after["model"], student.state_dict())
    epochs = [np.mean([loss.item() for e, loss in losses if e == epoch]) for epoch in range(3)]
    assert metrics["distillation_loss"].item() == pytest.approx(np.mean(epochs), rel=1e-9)
    assert set(after) == {"model", "average", "made", "member-0", "member-1", "member-2"}
    assert_close(after["made"]["images"], pool[-home.strategy.batch_size :], rtol=1e-9, atol=1e-11)
    labels = torch.randint(10, (home.strategy.batch_size,), generator=(server.seed / "epoch" / 2 / "labels").torch()).sort().values
    assert torch.equal(after["made"]["y"], labels)
    assert all(same(after[f"member-{u.client}"], u.state["model"]) for u in updates)


def test_a_batch_of_images_depends_on_the_path_of_its_seed_alone():
    """Not on what was made before it, nor on torch's own generator."""
    home, _ = settle("strategy=dense", *options("dense"), "strategy.generator_steps=5")
    models = [{k: v + 0.1 if v.is_floating_point() else v for k, v in home.initial.items()}, home.initial]
    make = lambda seed: home.strategy.synthesis(home.model, stacked(models), home.initial, home.task, seed)[0]
    first, state = make(Seed(0) / "epoch" / 1), torch.get_rng_state()
    others = [make(Seed(0) / "epoch" / epoch) for epoch in range(2, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(make(Seed(0) / "epoch" / 1), first) and not any(torch.equal(other, first) for other in others)


def test_the_labels_that_images_are_made_for_are_sorted_and_of_all_classes(monkeypatch):
    home, _ = settle("strategy=dense", *options("dense"), "strategy.batch_size=64", "strategy.generator_steps=1")
    seen, loss = [], Synthesis.loss
    monkeypatch.setattr(
        Synthesis, "loss", lambda self, model, batch, *rest, **more: (seen.append(batch.y), loss(self, model, batch, *rest, **more))[1]
    )
    home.strategy.synthesis(home.model, stacked([home.initial]), home.initial, home.task, Seed(0))
    assert torch.equal(seen[0], seen[0].sort().values) and seen[0].unique().tolist() == list(range(10))


@pytest.mark.parametrize(("steps", "sizes"), [(None, [1, 2, 3]), (5, [5, 5, 5])])
def test_an_epoch_passes_over_all_images_so_far_or_does_so_many_steps(steps, sizes):
    home, _ = settle("strategy=dense", *options("dense"), f"strategy.student_steps={'null' if steps is None else steps}")
    for epoch, size in enumerate(sizes):
        number = 8 * (epoch + 1)
        images = Examples(torch.rand(number, 1, 8, 8), torch.zeros(number, dtype=torch.int64), 1.0, (0.0,), (1.0,))
        batches = home.strategy.material(images, torch.arange(number * 10.0).view(number, 10), Seed(0), torch.float32)
        assert batches.index.shape == (size, 8) and torch.equal(batches.drawn["teacher"][..., 0], batches.index * 10.0)
        assert batches.index.flatten()[:number].sort().values.tolist() == list(range(number))[: size * 8]


@pytest.mark.parametrize("student", ["average", "fresh"])
def test_dense_s_student_begins_from_the_mean_or_afresh(student):
    home, server, state, updates = trained("dense", f"strategy.student={student}", "strategy.epochs=0")
    after, metrics = home.strategy.aggregate(server, state, updates, 1)
    assert same(after["model"], after["average"] if student == "average" else home.initial) and metrics == {}


def test_dense_without_batchnorm_has_no_statistics_to_meet():
    home, server, state, updates = trained("dense", "model=mlp")
    after, metrics = home.strategy.aggregate(server, state, updates, 1)
    assert metrics["synthesis_bn"] == 0 and metrics["synthesis_oh"] > 0 and not same(after["model"], after["average"])


def test_images_come_to_be_what_the_ensemble_is_sure_of():
    """The cross-entropy with the drawn labels falls below that of guessing, and the statistics come nearer."""
    home, server, _, updates = trained("dense", "strategy.batch_size=32", "local_steps=40", "optimizer.lr=0.1", "partition.alpha=1000")
    models = stacked([u.state["model"] for u in updates])
    terms = []
    for steps in (1, 30):
        synthesis = replace(home.strategy.synthesis, steps=steps, optimizer=partial(torch.optim.Adam, lr=0.02))
        terms.append(synthesis(home.model, models, home.initial, home.task, server.seed)[1])
    assert terms[1]["oh"] < 0.9 * terms[0]["oh"] and terms[1]["bn"] < 0.9 * terms[0]["bn"]


# ---------------------------------------------------------------------------------------------------------------- FedFTG
SHARES = torch.tensor([[1.0, 0.2, 0.7], [0.0, 0.8, 0.3]], dtype=DOUBLE)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("weighting", ["per_sample", "scalar"])
@pytest.mark.parametrize("discrepancy", ["l1", "kl"])
def test_fedftg_s_generator_s_loss_is_the_equation(discrepancy, weighting, place):
    """Client by client, value and gradient by the images; in l1 the teacher's logits do not move the generator."""
    choices = (f"strategy.discrepancy={discrepancy}", f"strategy.weighting={weighting}", "strategy.cls=0.7", "strategy.dis=1.5")
    home, (student, *teachers), random = perceptrons("strategy=fedftg", *options("fedftg"), *choices, number=3)
    x, noise, y = random.random((5, 1, 8, 8)), 0.3 * random.standard_normal((5, 3)), np.array([0, 1, 1, 2, 2])
    module = Pictures(torch.from_numpy(x))
    drawn = {"noise": torch.from_numpy(noise), "distances": noise_distances(torch.from_numpy(noise)), "place": torch.tensor(place)}
    shared = {"teachers": stacked(teachers), "student": student, "labels": {"shares": SHARES}}
    value, terms = home.strategy.generator_loss(
        FunctionalModel(module), Batch(None, torch.from_numpy(y), drawn), shared, {}, network=home.model
    )
    fixed = oracles.mlp(numpy(teachers[place]), x) if discrepancy == "l1" else None
    arrays = (numpy(student), numpy(teachers[place]), fixed, SHARES[place].numpy()[y], 2, 0.7, 1.5, discrepancy, weighting)
    equation = lambda at: oracles.fedftg_generator(at["x"], noise, y, *arrays)
    assert value.item() == pytest.approx(equation({"x": x}), rel=1e-10)
    assert value.item() == pytest.approx((-terms["discrepancy"] + 0.7 * terms["label_loss"] + 1.5 * terms["diversity_loss"] / 2).item())
    (found,) = torch.autograd.grad(value, module.x)
    np.testing.assert_allclose(found.numpy(), oracles.gradient(equation, {"x": x})["x"], atol=1e-7)


def test_the_two_weightings_are_two():
    """Labels whose losses are 0 and 10 with shares 1 and 0: by sample 0, by the mean share 2.5."""
    loss, share = torch.tensor([0.0, 10.0]), torch.tensor([1.0, 0.0])
    assert ((share * loss).mean(), share.mean() * loss.mean()) == (0.0, 2.5)


@pytest.mark.parametrize("mean_over_classes", [True, False])
def test_fedftg_s_model_s_loss_is_the_equation(mean_over_classes):
    """The factor 1/C, and the teachers' probabilities weighted by their shares of the label."""
    home, models, random = perceptrons(
        "strategy=fedftg", *options("fedftg"), f"strategy.mean_over_classes={str(mean_over_classes).lower()}"
    )
    counts = np.array([[4.0, 1, 0] + [1] * 7, [0.0, 3, 5] + [1] * 7])
    x, y, student = random.random((6, 1, 8, 8)), np.array([0, 1, 1, 2, 2, 9]), network(home, home.initial)
    shares = torch.from_numpy(counts / counts.sum(0))
    said = [FunctionalModel(home.model).at(one)(torch.from_numpy(x)).logits.softmax(-1) for one in models]
    target = sum(share[torch.from_numpy(y)][:, None] * one for share, one in zip(shares, said))
    value, _ = home.strategy.distillation(
        FunctionalModel(student), Batch(None, torch.from_numpy(y), {"image": torch.from_numpy(x), "target": target}), {}, {}
    )
    at = numpy(dict(student.named_parameters()))
    equation = lambda head: oracles.fedftg_student({**at, **head}, x, y, [numpy(one) for one in models], counts, mean_over_classes)
    heads = {key: at[key] for key in ("head.weight", "head.bias")}
    assert value.item() == pytest.approx(equation(heads), rel=1e-12)
    for name, slope in oracles.gradient(equation, heads).items():
        (found,) = torch.autograd.grad(value, student.get_parameter(name), retain_graph=True)
        np.testing.assert_allclose(found.numpy(), slope, atol=1e-8)


def plain_fedftg(home, server, state, updates, server_round: int):
    """One round of FedFTG's server: generator, Adam's moments, model."""
    strategy, models = home.strategy, [u.state["model"] for u in updates]
    counts = torch.stack([torch.bincount(home.train.y[home.partition.train[u.client]], minlength=10) for u in updates]).double()
    shares, teachers = counts / counts.sum(0).clamp(min=1), [network(home, one).eval() for one in models]
    generator, student = strategy.generator(home.task).double(), network(home, average(models, strategy.aggregation_weights(updates)))
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


def test_fedftg_s_server_is_a_plain_loop_over_two_rounds():
    """The generator and its moments go on from the state, as it was on the wire; the model's learning rate falls."""
    home, server, state, updates = trained("fedftg", "precision=float64", "strategy.student_lr_decay=0.5")
    for number in (1, 2):
        at = replace(server, seed=home.seed / "round" / number / "server")
        generator, adam, student = plain_fedftg(home, at, state, updates, number)
        after, _ = home.strategy.aggregate(at, state, updates, number)
        close(after["generator"], generator)
        close(after["model"], student)
        names = [name for name, _ in home.strategy.generator(home.task).named_parameters()]
        for i, name in enumerate(names):
            assert_close(after["generator_optimizer"][f"exp_avg/{name}"], adam.state_dict()["state"][i]["exp_avg"], rtol=1e-7, atol=1e-11)
            assert after["generator_optimizer"][f"step/{name}"] == number * 2 * 3
        state = clones({part: {key: value.contiguous() for key, value in tensors.items()} for part, tensors in after.items()})


def test_labels_are_drawn_of_classes_that_clients_have_in_proportion_to_their_examples():
    home, _ = settle("strategy=fedftg", *options("fedftg"), "strategy.batch_size=100")
    counts = torch.tensor([0.0, 30, 0, 10, 0, 0, 0, 0, 0, 0])
    server = home.federation().server
    y, noise = home.strategy.draw_inputs(server, counts, 0, "student", 50)
    assert y.unique().tolist() == [1, 3] and (y == 1).double().mean().item() == pytest.approx(0.75, abs=0.03)
    assert y.shape == (50, 100) and noise.shape == (50, 100, 6) and noise.std().item() == pytest.approx(1, abs=0.02)
    again, other = (home.strategy.draw_inputs(server, counts, number, "student", 50)[0] for number in (0, 1))
    assert torch.equal(again, y) and not torch.equal(other, y)


def test_a_class_that_nobody_has_does_not_break_the_shares():
    home, server, state, updates = trained("fedftg")
    bare = [
        replace(u, state={**u.state, "labels": {"counts": u.state["labels"]["counts"] * (torch.arange(10) == k)}})
        for k, u in enumerate(updates)
    ]
    after, metrics = home.strategy.aggregate(server, state, bare, 1)
    assert all(torch.isfinite(value).all() for part in after.values() for value in part.values()) and metrics["distillation_loss"] > 0


def test_clients_report_how_many_examples_of_each_class_they_hold():
    home, _, _, updates = trained("fedftg", "local_steps=2")
    for u in updates:
        assert set(u.state) == {"model", "labels"}
        assert u.state["labels"]["counts"].tolist() == np.bincount(home.train.y[home.partition.train[u.client]], minlength=10).tolist()


def test_fedftg_s_generator_goes_on_from_round_to_round():
    ran = run("strategy=fedftg", *options("fedftg"))
    assert {int(v) for k, v in ran.state["generator_optimizer"].items() if k.startswith("step/")} == {3 * 2 * 3}
    assert ran.state["generator"]["begin.num_batches_tracked"] == 3 * 2 * 3
    once = run("strategy=fedftg", *options("fedftg"), "rounds=1")
    assert not same(once.state["generator"], ran.state["generator"]) and ran.home.strategy.broadcast_parts == ("model",)


# ------------------------------------------------------------------------------------------------------------ all of them
@pytest.mark.parametrize("name", SERVER_SIDE)
def test_a_server_writes_neither_into_updates_nor_into_its_state_and_draws_from_its_seed(name):
    home, server, state, updates = trained(name)
    before, random = clones({"state": state, **{str(u.client): u.state for u in updates}}), torch.get_rng_state()
    first, _ = home.strategy.aggregate(server, state, updates, 1)
    assert same({"state": state, **{str(u.client): u.state for u in updates}}, before)
    assert same(home.strategy.aggregate(server, state, updates, 1)[0], first) and torch.equal(torch.get_rng_state(), random)
    other = replace(server, seed=server.seed / "other")
    assert not same(home.strategy.aggregate(other, state, updates, 1)[0]["model"], first["model"])


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
@pytest.mark.parametrize("name", ["feddf", "dense", "fedftg"])
def test_a_server_of_other_networks_and_of_one_client_alone(name, model):
    home, server, state, updates = trained(name, f"model={model}", "local_steps=1")
    after, metrics = home.strategy.aggregate(server, state, updates[:1], 1)
    assert all(torch.isfinite(value).all() for value in after["model"].values())
    assert same(after["average"], updates[0].state["model"]) and len(metrics) >= 2


# ------------------------------------------------------------------------------------------------------ image generator
@pytest.mark.parametrize("brightest", [1.0, 255.0])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 7, 5), (3, 1, 1)])
def test_generated_images_have_the_shape_and_the_range_of_the_task_s(shape, brightest):
    task = Task("toy", shape, 4, mean=(0.5,) * shape[0], std=(0.25,) * shape[0], max_pixel=brightest)
    with Seed(0).globally():
        module = ImageConv(task, width=3, noise_size=5, conditional=True)
        noise = torch.randn(6, 5)
    found = []
    for bias in (-40.0, 0.0, 40.0):
        module.end.bias.data.fill_(bias)
        found.append(module(noise, torch.tensor([0, 1, 2, 3, 0, 1])).detach())
        assert found[-1].shape == (6, *shape)
    black, grey, white = (one.double().mean().item() for one in found)
    assert black == pytest.approx(-2) and white == pytest.approx((brightest - 0.5) / 0.25) and black < grey < white


def test_a_label_counts_where_it_is_a_condition():
    task = Task("toy", (1, 8, 8), 4)
    for conditional in (True, False):
        with Seed(0).globally():
            module, noise = ImageConv(task, width=3, noise_size=5, conditional=conditional).double(), torch.randn(6, 5).double()
        one, other = (module.eval()(noise, torch.full((6,), label)) for label in (0, 3))
        assert torch.equal(one, other) == (not conditional) and one.dtype == DOUBLE
        assert {key for key in snapshot(module) if key in ("mean", "std")} == {"mean", "std"}
