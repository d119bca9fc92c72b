"""Training on what teachers say, in pieces: for as long as it helps on examples that are held out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedkd.training.batch import Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.loop import LossFunction, fit
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Metrics, Tensors


@dataclass(frozen=True)
class Distilled:
    """What is left: the tensors, the steps done, and the mean of the metrics over these."""

    tensors: Tensors
    num_steps: int
    means: Metrics


def distill_logits(
    module: nn.Module,
    start: Tensors,
    piece: Callable[[slice], Batches],
    num_steps: int,
    loss: LossFunction,
    optimizer: OptimizerFactory,
    *,
    schedule: Sequence[float] | None = None,
    every: int | None = None,
    patience: int | None = None,
    judge: Callable[[Tensors], float] | None = None,
) -> Distilled:
    """Train for ``num_steps``, or until ``judge`` has seen no gain for ``patience`` steps; then the tensors that it liked best are left.

    Args:
        module: the student.
        start: its parameters and buffers at the beginning.
        piece: the material of steps ``begin..end``.
        num_steps: >= 0; 0 leaves ``start`` as it is.
        loss: as of :func:`fedkd.training.loop.fit`.
        optimizer: ``parameters -> optimizer``.
        schedule: by what the learning rate is multiplied in each step.
        every: steps of a piece, and between two judgements; None is all.
        patience: steps without a gain; None is all.
        judge: the larger the better; None: there is nothing to judge by, and all steps are done.
    """
    tensors, state, sums, done = start, None, {}, 0
    best, kept, since = -math.inf if judge is None else judge(start), start, 0
    every = num_steps if every is None else every
    while done < num_steps and (judge is None or patience is None or since < patience):
        steps = slice(done, min(done + every, num_steps))
        rates = None if schedule is None else schedule[steps]
        fitted = fit(module, tensors, piece(steps), loss, optimizer, optimizer_state=state, schedule=rates)
        tensors, state, since, done = fitted.tensors, fitted.optimizer, since + steps.stop - steps.start, steps.stop
        sums = {name: sums[name] + value if name in sums else value for name, value in fitted.metric_sums.items()}
        if judge is not None and (score := judge(tensors)) > best:
            best, kept, since = score, tensors, 0
    return Distilled(tensors if judge is None else kept, done, {name: value / done for name, value in sums.items()} if done else {})


def cosine(num_steps: int) -> list[float]:
    """``(1 + cos(pi s / S)) / 2``: from one down towards zero."""
    return [(1 + math.cos(math.pi * step / num_steps)) / 2 for step in range(num_steps)]


@torch.no_grad()
def logits_on(module: nn.Module, tensors: Tensors, examples: Examples, batch_size: int, dtype: torch.dtype) -> Tensor:  # [N, C]
    """What a network with ``tensors`` says of all of ``examples``, in eval mode."""
    model = FunctionalModel(module).at(tensors)
    index = torch.arange(len(examples), device=examples.y.device)
    return torch.cat([model(images(examples, part, dtype)).logits for part in index.split(batch_size)])


def images(examples: Examples, index: Tensor, dtype: torch.dtype) -> Tensor:
    """The images at ``index`` as networks see them, in the layout that convolutions are fast in."""
    return examples.images(index, dtype).contiguous(memory_format=torch.channels_last)
