"""Distillation of logits on a server, with evaluation in between and early stopping."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedkd.tensor_ops import channels_last
from fedkd.training.batch import Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.loop import LossFunction, fit
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Metrics, Tensors


@dataclass(frozen=True)
class DistillationResult:
    """The result of :func:`distill_logits`.

    Args:
        tensors: the parameters and buffers of the student.
        num_steps: number of steps that were done.
        means: the mean of each metric over these steps.
    """

    tensors: Tensors
    num_steps: int
    means: Metrics


def distill_logits(
    module: nn.Module,
    start: Tensors,
    batches_of: Callable[[slice], Batches],
    num_steps: int,
    loss: LossFunction,
    optimizer: OptimizerFactory,
    *,
    schedule: Sequence[float] | None = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    evaluate: Callable[[Tensors], float] | None = None,
) -> DistillationResult:
    """Train a student for ``num_steps``, or until ``evaluate`` has not improved for ``patience`` steps.

    With ``evaluate`` the student with the best score is returned. The start is evaluated too.

    Args:
        module: the student.
        start: its parameters and buffers at the start.
        batches_of: ``steps -> batches``, for a slice of the steps.
        num_steps: maximum number of steps, >= 0. 0 returns ``start``.
        loss: the loss, see :func:`fedkd.training.loop.fit`.
        optimizer: ``parameters -> optimizer``.
        schedule: factor of the learning rate in each step. None for a constant rate.
        evaluate_every: steps between two evaluations. None trains all steps in one piece.
        patience: number of steps without improvement after which training stops. None for no early stopping.
        evaluate: ``tensors -> score``, where higher is better. None for no evaluation.
    """
    tensors, optimizer_state, done = start, None, 0
    sums: Metrics = {}
    best_score, best, without_improvement = -math.inf if evaluate is None else evaluate(start), start, 0
    evaluate_every = num_steps if evaluate_every is None else evaluate_every
    while done < num_steps and (evaluate is None or patience is None or without_improvement < patience):
        steps = slice(done, min(done + evaluate_every, num_steps))
        factors = None if schedule is None else schedule[steps]
        fitted = fit(module, tensors, batches_of(steps), loss, optimizer, optimizer_state=optimizer_state, schedule=factors)
        tensors, optimizer_state, without_improvement = fitted.tensors, fitted.optimizer, without_improvement + steps.stop - steps.start
        done = steps.stop
        sums = {name: sums[name] + value if name in sums else value for name, value in fitted.metric_sums.items()}
        if evaluate is not None and (score := evaluate(tensors)) > best_score:
            best_score, best, without_improvement = score, tensors, 0
    means = {name: value / done for name, value in sums.items()} if done else {}
    return DistillationResult(tensors if evaluate is None else best, done, means)


def cosine_schedule(num_steps: int) -> list[float]:
    """``(1 + cos(pi s / S)) / 2`` for the steps s in 0..S-1: from 1 towards 0."""
    return [(1 + math.cos(math.pi * step / num_steps)) / 2 for step in range(num_steps)]


@torch.no_grad()
def compute_logits(module: nn.Module, tensors: Tensors, examples: Examples, batch_size: int, dtype: torch.dtype) -> Tensor:  # [N, C]
    """The logits of a network with ``tensors`` for all examples, in eval mode."""
    model = FunctionalModel(module).at(tensors)
    index = torch.arange(len(examples), device=examples.y.device)
    return torch.cat([model(load_images(examples, batch, dtype)).logits for batch in index.split(batch_size)])


def load_images(examples: Examples, index: Tensor, dtype: torch.dtype) -> Tensor:  # [n] -> [n, channels, height, width]
    """The normalized images at ``index``, in the memory layout in which convolutions are fast."""
    return channels_last(examples.images(index, dtype))
