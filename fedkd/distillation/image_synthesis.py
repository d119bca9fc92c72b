"""Images made from what networks know, without data: a generator and its noise are fitted to an ensemble of teachers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedkd.losses.batchnorm_statistics import statistics_distance
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.kl import kl_divergence
from fedkd.seed import Seed
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, eval_copy, snapshot
from fedkd.training.loop import fit
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Metrics, Output, State, Task, Tensors


class Latent(nn.Module):
    """A generator with a batch of noise that learns along: ``y [B] -> images``."""

    def __init__(self, generator: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.generator = generator
        self.noise = nn.Parameter(torch.zeros(batch_size, generator.noise_size))

    def forward(self, y: Tensor) -> Tensor:
        return self.generator(self.noise, y)


@dataclass(frozen=True)
class Synthesis:
    """``bn sum_kl(||var - var_kl|| + ||mean - mean_kl||) + oh CE(z, y) - adv mean(1(argmax z != argmax z_s) KL(softmax z || softmax z_s))``.

    z is the teachers' mean logit, z_s the student's, k teachers, l their BatchNorm layers (none: no such term). DENSE, Zhang et al.
    2022, as its public code has it: a fresh generator for every batch, noise that is learnt along, labels drawn uniformly and sorted.

    Args:
        generator: ``task -> module(noise, y)``.
        optimizer: ``parameters -> optimizer`` of generator and noise.
        steps: >= 1, of one batch.
        batch_size: images.
        bn: >= 0, weight of the statistics.
        oh: >= 0, weight of the labels.
        adv: >= 0, weight of the disagreement with the student.
    """

    generator: Any
    optimizer: OptimizerFactory
    steps: int
    batch_size: int
    bn: float
    oh: float
    adv: float

    def __call__(
        self, network: nn.Module, teachers: Tensors, student: Tensors, task: Task, seed: Seed, learner: nn.Module | None = None
    ) -> tuple[Tensor, Metrics]:
        """A batch of images [B, ...] for teachers (stacked, [K, ...]) of one network and a student, of the same one if ``learner`` is None;
        the mean of every term."""
        example = next(iter(student.values()))
        module = workspace(self.generator, task, self.batch_size).to(example.device, example.dtype)
        with (seed / "generator").globally():
            start = {f"generator.{key}": value.to(example) for key, value in snapshot(self.generator(task)).items()}
        random = (seed / "noise").torch()
        start = {key: value.to(module.state_dict()[key]) for key, value in start.items()}
        start["noise"] = torch.randn(module.noise.shape, generator=random).to(example)
        y = self.labels(task, seed).to(example.device)
        fitted = fit(
            module, start, Batches(y.expand(self.steps, -1), dtype=example.dtype), partial(self.loss, network=network, learner=learner), self.optimizer,
            broadcast={"teachers": teachers, "student": student},
        )  # fmt: skip
        with torch.no_grad():
            x = functional_call(module.train(), dict(fitted.tensors), (y,))
        return x, {name: value / self.steps for name, value in fitted.metric_sums.items()}

    def labels(self, task: Task, seed: Seed) -> Tensor:  # [B]
        """What the images of a batch are to show."""
        return torch.randint(task.num_classes, (self.batch_size,), generator=(seed / "labels").torch()).sort().values

    def loss(
        self, model: FunctionalModel, batch: Batch, shared: State, own: State, *, network: nn.Module, learner: nn.Module | None = None
    ) -> tuple[Tensor, Metrics]:
        """The equation of this class."""
        x, teachers = model(batch.y), unstacked(shared["teachers"])
        said = [inputs_of_norms(network, one, x) for one in teachers]
        z = torch.stack([output.logits for output, _ in said]).mean(0)
        student = FunctionalModel(network if learner is None else learner).at(shared["student"])(x).logits
        apart = [
            statistics_distance(value, one[f"{name}.running_mean"], one[f"{name}.running_var"])
            for one, (_, inputs) in zip(teachers, said) for name, value in inputs.items()
        ]  # fmt: skip
        statistics = torch.stack(apart).sum() if apart else z.new_zeros(())
        labels = cross_entropy(z, batch.y).mean()
        disagree = (z.argmax(-1) != student.argmax(-1)).to(z.dtype)
        adversarial = -(disagree * kl_divergence(z, student)).mean()
        value = self.bn * statistics + self.oh * labels + self.adv * adversarial
        return value, {"bn": statistics, "oh": labels, "adv": adversarial}


@lru_cache(maxsize=8)
def workspace(generator: Any, task: Task, batch_size: int) -> Latent:
    """A place for generators of one kind: its values are always overwritten before use."""
    with Seed(0).globally():  # and nobody's draws are moved by them
        return Latent(generator(task), batch_size)


def as_seen(x: Tensor) -> Examples:
    """Images as networks see them already, without labels."""
    return Examples(x, torch.zeros(len(x), dtype=torch.int64, device=x.device), 1.0, (0.0,) * x.shape[1], (1.0,) * x.shape[1])


def stacked(models: Sequence[Tensors]) -> Tensors:
    """Networks of one architecture as tensors [K, ...]."""
    return {key: torch.stack([one[key] for one in models]) for key in models[0]}


def unstacked(models: Tensors) -> list[Tensors]:
    """The inverse of :func:`stacked`."""
    number = len(next(iter(models.values())))
    return [{key: value[place] for key, value in models.items()} for place in range(number)]


def inputs_of_norms(network: nn.Module, tensors: Tensors, x: Tensor) -> tuple[Output, Tensors]:
    """What a network with ``tensors`` says in eval mode, and what enters each of its BatchNorm layers, by the layer's name."""
    frozen, seen = eval_copy(network), {}

    def keep(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = inputs[0]

    norms = [(name, layer) for name, layer in frozen.named_modules() if isinstance(layer, nn.modules.batchnorm._NormBase)]
    handles = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in norms]
    try:
        return functional_call(frozen, tensors, (x,)), seen
    finally:
        for handle in handles:
            handle.remove()
