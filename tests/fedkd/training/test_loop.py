"""The training loop, batches, the state of optimizers, functional models, and evaluation."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fedkd.federation.client import Client
from fedkd.metrics.accuracy import evaluate
from fedkd.models.cnn import FedGenCNN
from fedkd.models.mlp import MLP
from fedkd.seed import Seed
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, load, snapshot, submodule_tensors
from fedkd.training.loop import fit
from fedkd.training.optimizers import ClippedSGD, clip_gradients, flatten_optimizer, restore_optimizer, scale_lr
from fedkd.types import Examples, Task
from tests.small_runs import same_tensors, small_simulation

TASK = Task("toy", (1, 4, 4), 3)
SGD = partial(torch.optim.SGD, lr=0.1)
LIMIT = 1.0
CLIPPED = partial(ClippedSGD, lr=0.1, momentum=0.5, weight_decay=0.1, max_norm=LIMIT)
OPTIMIZERS = {
    "clipped": CLIPPED,
    "sgd": SGD,
    "sgd with momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=1e-2, weight_decay=1e-2),
}


def examples(number: int, seed: int = 0) -> Examples:
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (number, *TASK.shape), generator=random, dtype=torch.uint8)
    return Examples(x, torch.randint(0, TASK.num_classes, (number,), generator=random), 255.0, (0.5,), (0.5,))


def client(number: int, num_steps: int, batch_size: int = 8, model: nn.Module | None = None) -> Client:
    torch.manual_seed(0)
    model = model or MLP(TASK, widths=[5])
    return Client(
        id=0, task=TASK, seed=Seed(0) / "round" / 1, model=model, initial=snapshot(model), architecture="mlp", data=examples(number),
        num_steps=num_steps, batch_size=batch_size, optimizer=SGD, lr=0.1, momentum=0.0, dtype=torch.float32,
    )  # fmt: skip


def cross_entropy(model, batch, broadcast, client_state):
    return nn.functional.cross_entropy(model(batch.x).logits, batch.y), {"labels": torch.bincount(batch.y, minlength=TASK.num_classes)}


# ------------------------------------------------------------------------------------------------------------- batches
def test_batches_cover_each_epoch_once_in_a_new_order():
    index = client(40, num_steps=10).batches().index
    first, second = index[:5].flatten(), index[5:].flatten()
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(40))
    assert not torch.equal(first, second)


def test_an_epoch_drops_its_incomplete_last_batch_and_stops_at_the_number_of_steps():
    index = client(43, num_steps=7).batches().index
    assert index.shape == (7, 8) and len(index[:5].unique()) == 40 and len(index[5:].unique()) == 16


def test_a_client_with_fewer_examples_than_a_batch_trains_on_all_of_them():
    batches = client(5, num_steps=3).batches()
    assert batches.index.shape == (3, 5) and all(len(row.unique()) == 5 for row in batches.index)
    fitted = fit(client(5, 3).model, client(5, 3).initial, batches, cross_entropy, SGD)
    assert fitted.metric_sums["labels"].sum() == 15


def test_batches_have_the_images_and_labels_of_their_index():
    site = client(40, num_steps=2)
    batches = site.batches()
    for row, batch in zip(batches.index, batches, strict=True):
        assert torch.equal(batch.y, site.data.y[row])
        torch.testing.assert_close(batch.x, (site.data.x[row].float() / 255 - 0.5) / 0.5)


def test_the_order_depends_on_the_client_s_seed_alone():
    assert torch.equal(client(40, 5).batches().index, client(40, 5).batches().index)
    other = client(40, 5)
    object.__setattr__(other, "seed", Seed(0) / "round" / 2)
    assert not torch.equal(other.batches().index, client(40, 5).batches().index)


def test_drawn_tensors_are_attributes_of_their_batch_and_unknown_ones_are_named():
    batches = client(40, 3).batches().with_drawn({"noise": torch.arange(6.0).view(3, 2)})
    assert [batch.noise.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(AttributeError, match="no 'nose'.*noise"):
        _ = next(iter(batches)).nose


@pytest.mark.parametrize("length", [2, 4])
def test_drawn_tensors_for_another_number_of_steps_are_refused(length):
    with pytest.raises(AssertionError, match="draw 'noise' has"):
        client(40, 3).batches().with_drawn({"noise": torch.zeros(length, 2)})


# ----------------------------------------------------------------------------------------------------------------- fit
def test_clipped_gradients_are_those_of_torch():
    """Norms below and above the limit, and weight decay that is added afterwards."""
    site = client(40, 6, model=FedGenCNN(TASK, widths=[3], pool=False, embedding_size=4))
    plain = deepcopy(site.model)
    load(plain, site.initial)
    stepper, norms = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.5, weight_decay=0.1), []
    for batch in site.batches():
        stepper.zero_grad()
        nn.functional.cross_entropy(plain(batch.x).logits, batch.y).backward()
        norms.append(nn.utils.clip_grad_norm_(plain.parameters(), LIMIT).item())
        stepper.step()
    fitted = fit(site.model, site.initial, site.batches(), cross_entropy, CLIPPED)
    assert min(norms) < LIMIT < max(norms), norms
    assert_close(fitted.tensors, dict(plain.state_dict()), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_fit_equals_a_plain_loop(optimizer):
    site = client(40, 6, model=FedGenCNN(TASK, widths=[3], pool=False, embedding_size=4))
    fitted = fit(site.model, site.initial, site.batches(), cross_entropy, optimizer)
    plain = FedGenCNN(TASK, widths=[3], pool=False, embedding_size=4)
    load(plain, site.initial)
    stepper, total = optimizer(plain.parameters()), 0.0
    for batch in site.batches():
        stepper.zero_grad()
        value = nn.functional.cross_entropy(plain(batch.x).logits, batch.y)
        value.backward()
        stepper.step()
        total += value.detach()
    assert same_tensors(fitted.tensors, plain.state_dict())
    assert torch.equal(fitted.metric_sums["loss"], total)
    assert torch.equal(fitted.metric_sums["labels"], torch.bincount(site.batches().y.flatten(), minlength=3))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_training_in_two_parts_equals_one_training(optimizer):
    site = client(40, 6)
    whole, batches = fit(site.model, site.initial, site.batches(), cross_entropy, optimizer), site.batches()
    halves = [Batches(batches.y[cut], batches.index[cut], site.data) for cut in (slice(3), slice(3, None))]
    first = fit(site.model, site.initial, halves[0], cross_entropy, optimizer)
    second = fit(site.model, first.tensors, halves[1], cross_entropy, optimizer, optimizer_state=first.optimizer)
    assert same_tensors(second.tensors, whole.tensors) and same_tensors(second.optimizer, whole.optimizer)
    without_state = fit(site.model, first.tensors, halves[1], cross_entropy, optimizer)
    assert same_tensors(without_state.tensors, whole.tensors) == (not whole.optimizer)


def test_the_state_of_an_optimizer_is_named_and_copied():
    model = MLP(TASK, widths=[5])
    optimizer, names = torch.optim.Adam(model.parameters()), [name for name, _ in model.named_parameters()]
    model(torch.rand(2, *TASK.shape)).logits.sum().backward()
    optimizer.step()
    flat = flatten_optimizer(optimizer, names)
    kept = {key: value.clone() for key, value in flat.items()}
    assert {key.partition("/")[0] for key in flat} == {"step", "exp_avg", "exp_avg_sq"}
    assert flat["exp_avg/head.weight"].shape == model.head.weight.shape
    fresh = torch.optim.Adam(model.parameters())
    restore_optimizer(fresh, names, flat)
    fresh.step()
    assert flat["step/head.weight"] == 1 and optimizer.state[model.head.weight]["step"] == 1
    optimizer.step()
    assert same_tensors(flat, kept)


@pytest.mark.parametrize(
    "optimizer", [partial(torch.optim.Adam, lr=0.1, fused=True), partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)]
)
def test_an_optimizer_restored_from_another_layout_continues_unchanged(optimizer):
    """Kernels are trained in channels last and stored contiguously. Fused optimizers ignore strides."""
    random, ends = torch.Generator().manual_seed(0), []
    start, *slopes = (torch.randn(4, 3, 3, 3, generator=random) for _ in range(4))
    for stored in (False, True):
        leaf = start.clone(memory_format=torch.channels_last).requires_grad_()
        stepper = optimizer([leaf])
        for slope in slopes:
            if stored:
                flat = {key: value.clone(memory_format=torch.contiguous_format) for key, value in flatten_optimizer(stepper, ["w"]).items()}
                stepper = optimizer([leaf])
                restore_optimizer(stepper, ["w"], flat)
            leaf.grad = slope.clone(memory_format=torch.channels_last)
            stepper.step()
        ends.append(leaf.detach())
    assert torch.equal(*ends)


def test_scale_lr_changes_the_learning_rate_only():
    model = MLP(TASK, widths=[5])
    made = scale_lr(OPTIMIZERS["adam"], 0.5)(model.parameters())
    assert made.param_groups[0]["lr"] == 0.005 and made.param_groups[0]["weight_decay"] == 1e-2


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_infinite_loss_is_an_error(number):
    def loss(model, batch, broadcast, client_state):
        return cross_entropy(model, batch, broadcast, client_state)[0] * batch.factor, {}

    site = client(40, 3)
    batches = site.batches().with_drawn({"factor": torch.tensor([1.0, number, 1.0])})
    with pytest.raises(FloatingPointError, match="no longer finite after 3 steps"):
        fit(site.model, site.initial, batches, loss, SGD)


def test_fit_starts_from_its_argument_and_changes_no_argument():
    site = client(40, 3)
    start, before = snapshot(site.model), snapshot(site.model)
    nn.init.zeros_(site.model.head.weight)
    first = fit(site.model, start, site.batches(), cross_entropy, SGD).tensors
    again = fit(site.model, start, site.batches(), cross_entropy, SGD).tensors
    assert same_tensors(first, again) and same_tensors(start, before) and not same_tensors(first, before)


def test_fit_refuses_a_start_without_all_tensors():
    site = client(40, 3)
    with pytest.raises(RuntimeError, match="head.bias"):
        fit(site.model, {k: v for k, v in site.initial.items() if k != "head.bias"}, site.batches(), cross_entropy, SGD)


# --------------------------------------------------------------------------------------------------------------- functional model
@pytest.mark.parametrize("with_tensors", [False, True])
def test_a_functional_model_runs_its_head_and_other_weights(with_tensors):
    torch.manual_seed(1)
    model, x = FedGenCNN(TASK, widths=[3], pool=False, embedding_size=4), torch.rand(8, *TASK.shape)
    tensors = snapshot(model)
    functional = FunctionalModel(model, tensors) if with_tensors else FunctionalModel(model)
    other = {name: value + 1 for name, value in functional.parameters().items()}
    assert set(functional.parameters()) == {name for name, _ in model.named_parameters()}
    assert torch.equal(functional.head(torch.ones(2, 4)), model.head(torch.ones(2, 4)))
    other_model, before = functional.at(other), snapshot(model)
    output = other_model(x)
    assert not output.logits.requires_grad
    assert same_tensors(snapshot(model), before) and model.training  # in eval mode, running statistics are not updated
    load(model, {**before, **{name: value.detach() for name, value in other.items()}})
    torch.testing.assert_close(output.logits, model.eval()(x).logits.detach())


def test_tensors_of_a_submodule_have_the_submodule_s_names():
    model = MLP(TASK, widths=[5])
    assert set(submodule_tensors(snapshot(model), "head")) == {"weight", "bias"}


# ------------------------------------------------------------------------------------------------------------ evaluate
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_evaluation_counts_by_class_and_does_not_depend_on_the_batch_size(batch_size):
    data, model = examples(30), client(1, 1).model.eval()
    score = evaluate(model, data, batch_size, 3)
    logits = model(data.images(torch.arange(30))).logits
    correct = logits.argmax(1) == data.y
    assert torch.equal(score.total, data.y.bincount(minlength=3)) and torch.equal(score.correct, data.y[correct].bincount(minlength=3))
    assert score.accuracy == pytest.approx(correct.float().mean().item())
    assert score.loss == pytest.approx(nn.functional.cross_entropy(logits, data.y, reduction="sum").item(), rel=1e-5)


def test_evaluation_without_examples_has_no_accuracy():
    assert math.isnan(evaluate(client(1, 1).model.eval(), examples(0), 4, 3).accuracy)


def test_a_batch_may_have_no_images():
    (batch,) = Batches(torch.zeros(1, 4, dtype=torch.int64), drawn={"noise": torch.ones(1, 4, 2)})
    assert batch.x is None and batch.noise.shape == (4, 2) and isinstance(batch, Batch)


# ------------------------------------------------------------------------------------------------------------- execution
def test_bfloat16_changes_rounding_only():
    """Weights stay float32. One step differs by the rounding of bfloat16, for one client and for several together."""
    wide, narrow = (small_simulation("strategy=fedavg", f"precision={name}", "local_steps=1")[0] for name in ("float32", "bfloat16"))
    shared = {"model": wide.strategy.init_server(wide.federation().server)["model"]}
    exact, _ = wide.strategy.train(wide.client(0, 1), shared, None, 1)
    alone, _ = narrow.strategy.train(narrow.client(0, 1), shared, None, 1)
    together, _ = narrow.strategy.train_clients([narrow.client(0, 1)], shared, [None], 1)[0]
    for rounded in (alone, together):
        for name, value in rounded.state["model"].items():
            assert value.dtype == exact.state["model"][name].dtype
            torch.testing.assert_close(value, exact.state["model"][name], rtol=0.02, atol=2e-4)
        assert not torch.equal(rounded.state["model"]["embed.1.weight"], exact.state["model"]["embed.1.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_compiled_steps_change_rounding_only(together):
    plain, compiled = (
        small_simulation("strategy=fedgen", f"compile={flag}", "local_steps=2", "precision=float64")[0] for flag in ("false", "true")
    )
    state = plain.strategy.init_server(plain.federation().server)
    shared = {part: state[part] for part in plain.strategy.broadcast_parts}
    results = []
    for simulation in (plain, compiled):
        sites = [simulation.client(0, 2), simulation.client(1, 2)]
        done = (
            simulation.strategy.train_clients(sites, shared, [None, None], 2)
            if together
            else [simulation.strategy.train(s, shared, None, 2) for s in sites]
        )
        results.append(done)
    for (one, kept_one), (other, kept_other) in zip(*results):
        for name, value in one.state["model"].items():
            torch.testing.assert_close(other.state["model"][name], value, rtol=1e-9, atol=1e-11)
        for name, value in kept_one["local"].items():
            torch.testing.assert_close(kept_other["local"][name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("max_norm", "factor"), [(2.5, 0.5), (5.0, 1.0), (50.0, 1.0)])
def test_clipped_gradients(max_norm, factor):
    """The gradient (3, 0) and (0, 4) of two parameters has the norm 5. Shorter gradients are not changed."""
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = scale_lr(clip_gradients(SGD, max_norm), 10)(weights)
    for _ in range(2):
        weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
        optimizer.step()
    torch.testing.assert_close(torch.stack([-weight.detach() for weight in weights]), 2 * factor * torch.tensor([[3.0, 0.0], [0.0, 4.0]]))


def test_metrics_of_each_step_are_reported():
    """In order, and their sums are those of the result."""
    someone, seen = client(40, num_steps=4), []
    keep = lambda metrics: seen.append({name: value.clone() for name, value in metrics.items()})
    fitted = fit(someone.model, someone.initial, someone.batches(), cross_entropy, SGD, on_step=keep)
    assert len({one["loss"].item() for one in seen}) == 4 == len(seen)
    assert same_tensors({name: sum(one[name] for one in seen) for name in seen[0]}, fitted.metric_sums)
