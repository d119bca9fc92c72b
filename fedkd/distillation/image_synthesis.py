"""Data-free synthesis of images: a generator and its noise are trained against an ensemble of teachers (DENSE)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.losses.batchnorm_statistics import statistics_distance
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.kl import kl_divergence
from fedkd.seed import Seed
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, call_with, eval_copy, snapshot
from fedkd.training.loop import fit
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Metrics, Output, State, Task, Tensors


class NoiseAndGenerator(nn.Module):
    """A generator together with one batch of noise, which is trained like its parameters: ``y [B] -> images``.

    Args:
        generator: ``(noise [B, noise_size], y [B]) -> images``.
        batch_size: number of images B.
    """

    def __init__(self, generator: Any, batch_size: int) -> None:
        super().__init__()
        self.generator = generator
        self.noise = nn.Parameter(torch.zeros(batch_size, generator.noise_size))

    def forward(self, y: Tensor) -> Tensor:  # [B] -> [B, channels, height, width]
        """The images of the noise for labels ``y``."""
        return self.generator(self.noise, y)


@dataclass(frozen=True)
class Synthesis:
    """``bn sum_kl(||var - var_kl|| + ||mean - mean_kl||) + oh CE(z, y) - adv mean(1[argmax z != argmax z_s] KL(p || p_s))``.

    p and p_s are the probabilities of the logits z and z_s.

    z are the mean logits of the teachers, and z_s those of the student. mean_kl and var_kl are the running statistics of BatchNorm layer l
    of teacher k, mean and var those of its input. Without BatchNorm the first term is 0.

    As in DENSE's public code, each batch of images has a new generator, the noise is trained too, and labels are drawn uniformly and
    sorted.

    Source:
        Zhang, Chen, Li, Lyu, Wu, Ding, Shen, Wu: DENSE: Data-free one-shot federated learning, NeurIPS 2022.

    Args:
        generator: ``task -> module(noise, y)`` that makes images.
        optimizer: ``parameters -> optimizer`` of generator and noise.
        steps: training steps for one batch of images, >= 1.
        batch_size: number of images.
        bn: weight of the BatchNorm statistics, >= 0.
        oh: weight of the cross-entropy with the labels, >= 0.
        adv: weight of the disagreement with the student, >= 0.
    """

    generator: Callable[[Task], nn.Module]
    optimizer: OptimizerFactory
    steps: int
    batch_size: int
    bn: float
    oh: float
    adv: float

    def __call__(
        self, network: nn.Module, teachers: Tensors, student: Tensors, task: Task, seed: Seed, student_network: nn.Module | None = None
    ) -> tuple[Tensor, Metrics]:
        """One batch of images [B, channels, height, width], and the mean of each term over the training steps.

        Args:
            network: the network of the teachers.
            teachers: the teachers' tensors, stacked [K, ...].
            student: the student's tensors.
            task: the classification task.
            seed: seed of generator, noise and labels.
            student_network: the network of the student. None if it is the teachers' network.
        """
        example = next(iter(student.values()))
        module = cached_generator(self.generator, task, self.batch_size).to(example.device, example.dtype)
        with (seed / "generator").globally():
            start = {f"generator.{key}": value.to(example) for key, value in snapshot(self.generator(task)).items()}
        start = {key: value.to(module.state_dict()[key]) for key, value in start.items()}
        start["noise"] = torch.randn(module.noise.shape, generator=(seed / "noise").torch()).to(example)
        y = self.labels(task, seed).to(example.device)
        fitted = fit(
            module,
            start,
            Batches(y.expand(self.steps, -1), dtype=example.dtype),
            partial(self.loss, network=network, student_network=student_network),
            self.optimizer,
            broadcast={"teachers": teachers, "student": student},
        )
        with torch.no_grad():
            images = call_with(module.train(), fitted.tensors, y)
        return images, {name: value / self.steps for name, value in fitted.metric_sums.items()}

    def labels(self, task: Task, seed: Seed) -> Tensor:  # [B]
        """The labels of one batch of images: drawn uniformly from the classes that have training examples, in ascending order."""
        present = task.present
        return present[torch.randint(len(present), (self.batch_size,), generator=(seed / "labels").torch())].sort().values

    def loss(
        self,
        model: FunctionalModel,
        batch: Batch,
        broadcast: State,
        client_state: State,
        *,
        network: nn.Module,
        student_network: nn.Module | None = None,
    ) -> tuple[Tensor, Metrics]:
        """The equation of this class, and its terms ``bn``, ``oh`` and ``adv`` without weights."""
        images, teachers = model(batch.y), unstack_models(broadcast["teachers"])
        results = [run_with_batchnorm_inputs(network, tensors, images) for tensors in teachers]
        logits = torch.stack([output.logits for output, _ in results]).mean(0)
        student = FunctionalModel(network if student_network is None else student_network).at(broadcast["student"])(images).logits
        distances = [
            statistics_distance(value, tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"])
            for tensors, (_, inputs) in zip(teachers, results) for name, value in inputs.items()
        ]  # fmt: skip
        statistics = torch.stack(distances).sum() if distances else logits.new_zeros(())
        label_loss = cross_entropy(logits, batch.y).mean()
        disagreement = (logits.argmax(-1) != student.argmax(-1)).to(logits.dtype)
        adversarial = -(disagreement * kl_divergence(logits, student)).mean()
        value = self.bn * statistics + self.oh * label_loss + self.adv * adversarial
        return value, {"bn": statistics, "oh": label_loss, "adv": adversarial}


@lru_cache(maxsize=8)
def cached_generator(generator: Callable[[Task], nn.Module], task: Task, batch_size: int) -> NoiseAndGenerator:
    """A cached module whose tensors are always overwritten before use."""
    with Seed(0).globally():  # so that the global generators are not advanced
        return NoiseAndGenerator(generator(task), batch_size)


def as_examples(x: Tensor) -> Examples:
    """Normalized images [N, channels, height, width] as examples, with 0 for all labels."""
    num_channels = x.shape[1]
    return Examples(x, torch.zeros(len(x), dtype=torch.int64, device=x.device), 1.0, (0.0,) * num_channels, (1.0,) * num_channels)


def stack_models(models: Sequence[Tensors]) -> Tensors:
    """Models of one architecture as tensors [K, ...]."""
    return {key: torch.stack([model[key] for model in models]) for key in models[0]}


def unstack_models(models: Tensors) -> list[Tensors]:
    """The inverse of :func:`stack_models`."""
    number = len(next(iter(models.values())))
    return [{key: value[place] for key, value in models.items()} for place in range(number)]


def run_with_batchnorm_inputs(network: nn.Module, tensors: Tensors, x: Tensor) -> tuple[Output, Tensors]:
    """The output of a network with ``tensors`` in eval mode, and the input of each of its BatchNorm layers by the layer's name."""
    module = eval_copy(network)
    inputs_by_layer: Tensors = {}

    def keep(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs_by_layer[name] = inputs[0]

    norms = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._NormBase)]
    handles = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in norms]
    try:
        return call_with(module, tensors, x), inputs_by_layer
    finally:
        for handle in handles:
            handle.remove()
