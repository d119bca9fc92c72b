"""Tools for tests of distillation methods: small distillations on scikit-learn's digits, and single steps of them."""

import torch
from torch.testing import assert_close

from fedkd.seed import Seed
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, snapshot
from simulations.distillation.runner import compose_distillation
from simulations.distillation.setup import Setup, make_setup

TINY = (
    "teacher=resnet8", "teacher.widths=[6,8,10]", "student=resnet8", "student.widths=[5,6,7]", "batch_size=8", "precision=float64",
    "steps_per_epoch=3",
)  # fmt: skip


SMALL_DPK = ("distiller=dpk", "distiller.grid=2", "distiller.width=8", "distiller.heads=2", "distiller.depth=1")


def small_setup(*overrides: str) -> Setup:
    """A small distillation with an untrained teacher."""
    return make_setup(compose_distillation([*TINY, *overrides]))


def step(setup: Setup, teacher_tensors=None, start=None) -> tuple[dict, dict]:
    """The terms of one batch, and the gradients of their sum by all trained parameters, None where there is none."""
    teacher_tensors = {} if setup.teacher is None else (snapshot(setup.teacher) if teacher_tensors is None else teacher_tensors)
    training = setup.training(teacher_tensors)
    batch = next(iter(training.batches(setup.fixed_images, 0, Seed(3))))
    tensors = {key: value.clone() for key, value in (start or setup.initial_tensors).items()}
    leaves = {name: tensors[name].requires_grad_() for name, _ in setup.learner.named_parameters()}
    broadcast = {"teacher": teacher_tensors, "images": {"black": training.broadcast["images"]["black"]}}
    value, terms = training.loss(FunctionalModel(setup.learner.train(), tensors), batch, broadcast, {})
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    assert_close(value, sum(terms.values()))
    return {name: term.item() for name, term in terms.items()}, dict(zip(leaves, gradients))


def first_batch(setup: Setup) -> Batch:
    """The batch of :func:`step`."""
    return next(iter(setup.training({} if setup.teacher is None else snapshot(setup.teacher)).batches(setup.fixed_images, 0, Seed(3))))


def has_gradient(gradients: dict, prefix: str) -> bool:
    """Whether a parameter whose name starts with ``prefix`` has a gradient that is not 0."""
    return any(g is not None and bool((g != 0).any()) for name, g in gradients.items() if name.startswith(prefix))


def first_examples(setup: Setup) -> Batch:
    return Batch(setup.train.images(torch.arange(8), torch.float64), setup.train.y[:8])
