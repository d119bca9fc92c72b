"""Distillation of logits in pieces: equal to one training, early stopping, and the cosine schedule."""

from functools import partial

import pytest
import torch
from torch import nn

from fedkd.distillation.logit_distillation import compute_logits, cosine_schedule, distill_logits
from fedkd.losses.kl import kl_divergence
from fedkd.seed import Seed
from fedkd.training.batch import Batches
from tests.small_runs import same_tensors, small_simulation, strategy_overrides
from tests.strategies.server_tools import clone


@pytest.fixture(scope="module")
def distillation():
    """``distill_logits`` for a network with BatchNorm and ten steps towards a teacher's logits, and the simulation."""
    simulation, _ = small_simulation("strategy=feddf", *strategy_overrides("feddf"))
    images, where = simulation.client_data.public_data, torch.randint(100, (10, 16), generator=Seed(0).torch())
    teacher = compute_logits(simulation.model, {k: v + 0.1 for k, v in simulation.initial.items()}, images, 100, torch.float32)

    def piece(steps: slice) -> Batches:
        return Batches(images.y[where[steps]], where[steps], images, torch.float32, {"teacher": teacher[where[steps]]})

    return partial(distill_logits, simulation.model, simulation.initial, piece), simulation


def kl_loss(model, batch, broadcast, client_state):
    return kl_divergence(batch.teacher, model(batch.x).logits).mean(), {}


@pytest.mark.parametrize("every", [1, 3, 10, 99])
@pytest.mark.parametrize("schedule", [None, cosine_schedule(10)])
def test_pieces_equal_one_training_bit_for_bit(distillation, every, schedule):
    """The moments of a fused Adam, BatchNorm statistics and the schedule are kept between pieces."""
    go, _ = distillation
    adam = partial(torch.optim.Adam, lr=1e-2, fused=True)
    whole, pieces = (go(10, kl_loss, adam, schedule=schedule, evaluate_every=n) for n in (None, every))
    assert same_tensors(pieces.tensors, whole.tensors) and pieces.num_steps == whole.num_steps == 10
    assert pieces.means["loss"].item() == pytest.approx(whole.means["loss"].item(), rel=1e-6)


def test_early_stopping_keeps_the_best_student(distillation):
    """Scores of the start and after 2, 4, 6 and 8 steps: the second piece is the best, and training stops four steps later."""
    go, simulation = distillation
    scores, seen = [0.3, 0.4, 0.5, 0.5, 0.1, 0.9], []

    def judge(tensors):
        seen.append(clone(tensors))
        return scores[len(seen) - 1]

    sgd = partial(torch.optim.SGD, lr=0.1)
    stopped = go(10, kl_loss, sgd, evaluate_every=2, patience=4, evaluate=judge)
    assert len(seen) == 5 and stopped.num_steps == 8 and same_tensors(seen[0], simulation.initial)
    assert same_tensors(stopped.tensors, seen[2]) and same_tensors(stopped.tensors, go(4, kl_loss, sgd).tensors)
    assert go(10, kl_loss, sgd, evaluate_every=2, patience=4).num_steps == 10, "without evaluation all steps are done"
    assert go(10, kl_loss, sgd, evaluate_every=2, evaluate=lambda tensors: 0.0).num_steps == 10, "without patience all steps are done"


def test_start_is_kept_without_improvement(distillation):
    go, simulation = distillation
    worse = go(
        10,
        kl_loss,
        partial(torch.optim.SGD, lr=0.1),
        evaluate_every=5,
        patience=5,
        evaluate=lambda tensors: float(same_tensors(tensors, simulation.initial)),
    )
    assert same_tensors(worse.tensors, simulation.initial) and worse.num_steps == 5
    nothing = go(0, kl_loss, partial(torch.optim.SGD, lr=0.1))
    assert same_tensors(nothing.tensors, simulation.initial) and nothing.means == {} and nothing.num_steps == 0


def test_cosine_schedule_equals_pytorch():
    leaf = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([leaf], lr=1.0)
    schedule, rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7), []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert (
        cosine_schedule(7) == pytest.approx(rates)
        and cosine_schedule(4) == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
        and cosine_schedule(0) == []
    )
