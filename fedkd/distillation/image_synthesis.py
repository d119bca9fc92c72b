"""Data-free synthesis of images: a generator and its noise are trained against an ensemble of teachers (DENSE)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedkd.losses.batchnorm_statistics import statistics_distance
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.kl import kl_divergence
from fedkd.models.ensemble import Member, combine_logits
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

    z are the logits of the teachers' ensemble, and z_s those of the student. mean_kl and var_kl are the running statistics of BatchNorm
    layer l of teacher k, mean and var those of its input. Without BatchNorm the first term is 0. Teachers may have different networks.

    As in DENSE's public code, each batch of images has a new generator, the noise is trained too, and labels are drawn uniformly and
    sorted. The further arguments make it Co-Boosting's synthesis.

    Source:
        Zhang, Chen, Li, Lyu, Wu, Ding, Shen, Wu: DENSE: Data-free one-shot federated learning, NeurIPS 2022.
        Dai, Zhang, Li, Liu, Yang, Han: Enhancing one-shot federated learning through data and ensemble co-boosting, ICLR 2024.

    Args:
        generator: ``task -> module(noise, y)`` that makes images.
        optimizer: ``parameters -> optimizer`` of generator and noise.
        steps: training steps for one batch of images, >= 1.
        batch_size: number of images.
        bn: weight of the BatchNorm statistics, >= 0.
        oh: weight of the cross-entropy with the labels, >= 0.
        adv: weight of the disagreement with the student, >= 0.
        hardness: exponent h of the factor ``(1 - p[y])^h`` of each example's cross-entropy, without gradient, >= 0. 0 is no factor.
        adversarial: images whose divergence counts: those of ``disagreement`` (argmax z != argmax z_s), ``all``, or those on which the
            ensemble is right and the student wrong (``ensemble_right``).
        adversarial_temperature: temperature of the divergence, > 0.
        mean_statistics: divide the statistics' term by the number of teachers.
        sorted_labels: labels ascend.
        keep: ``last``: the images after the last step. ``best``: those of the step with the least loss.
    """

    generator: Callable[[Task], nn.Module]
    optimizer: OptimizerFactory
    steps: int
    batch_size: int
    bn: float
    oh: float
    adv: float
    hardness: float = 0.0
    adversarial: Literal["disagreement", "all", "ensemble_right"] = "disagreement"
    adversarial_temperature: float = 1.0
    mean_statistics: bool = False
    sorted_labels: bool = True
    keep: Literal["last", "best"] = "last"

    def __call__(
        self, teachers: Sequence[Member], student: Member, task: Task, seed: Seed, weights: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """One batch of images [B, channels, height, width], and the mean of each term over the training steps.

        Args:
            teachers: the teachers.
            student: the student.
            task: the classification task.
            seed: seed of generator, noise and labels.
            weights: weights of the teachers, see :func:`fedkd.models.ensemble.combine_logits`. None: the mean.
        """
        example = next(iter(student.tensors.values()))
        module = cached_generator(self.generator, task, self.batch_size).to(example.device, example.dtype)
        with (seed / "generator").globally():
            start = {f"generator.{key}": value.to(example) for key, value in snapshot(self.generator(task)).items()}
        start = {key: value.to(module.state_dict()[key]) for key, value in start.items()}
        start["noise"] = torch.randn(module.noise.shape, generator=(seed / "noise").torch()).to(example)
        y = self.labels(task, seed).to(example.device)
        best = BestImages()
        fitted = fit(
            module,
            start,
            Batches(y.expand(self.steps, -1), dtype=example.dtype),
            partial(self.loss, networks=tuple(one.network for one in teachers), student_network=student.network),
            self.optimizer,
            broadcast={**ensemble_parts(teachers, weights), "student": student.tensors},
            on_step=best.keep if self.keep == "best" else None,
        )
        terms = {name: value / self.steps for name, value in fitted.metric_sums.items() if name != "images"}
        if best.images is not None:
            return best.images, terms
        with torch.no_grad():
            images = call_with(module.train(), fitted.tensors, y)
        return images, terms

    def labels(self, task: Task, seed: Seed) -> Tensor:  # [B]
        """The labels of one batch of images, drawn uniformly from the classes that have training examples."""
        present = task.present
        drawn = present[torch.randint(len(present), (self.batch_size,), generator=(seed / "labels").torch())]
        return drawn.sort().values if self.sorted_labels else drawn

    def loss(
        self,
        model: FunctionalModel,
        batch: Batch,
        broadcast: State,
        client_state: State,
        *,
        networks: tuple[nn.Module, ...],
        student_network: nn.Module,
    ) -> tuple[Tensor, Metrics]:
        """The equation of this class, and its terms ``bn``, ``oh`` and ``adv`` without weights. Also the images where the best are kept."""
        images, teachers = model(batch.y), ensemble_members(broadcast, networks)
        results = [run_with_batchnorm_inputs(network, tensors, images) for network, tensors in teachers]
        logits = combine_logits(torch.stack([output.logits for output, _ in results]), ensemble_weights(broadcast), batch.y)
        student = FunctionalModel(student_network).at(broadcast["student"])(images).logits
        distances = [
            statistics_distance(value, tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"])
            for (_, tensors), (_, inputs) in zip(teachers, results) for name, value in inputs.items()
        ]  # fmt: skip
        statistics = torch.stack(distances).sum() if distances else logits.new_zeros(())
        statistics = statistics / len(teachers) if self.mean_statistics else statistics
        label_losses = cross_entropy(logits, batch.y)
        if self.hardness:
            label_losses = hardness_factors(logits, batch.y, self.hardness) * label_losses
        label_loss = label_losses.mean()
        divergences = kl_divergence(logits, student, self.adversarial_temperature)
        adversarial = -(counted_images(self.adversarial, logits, student, batch.y).to(logits.dtype) * divergences).mean()
        value = self.bn * statistics + self.oh * label_loss + self.adv * adversarial
        made = {"images": images} if self.keep == "best" else {}
        return value, {"bn": statistics, "oh": label_loss, "adv": adversarial, **made}


class BestImages:
    """The images of the step with the least loss so far. None before the first step."""

    def __init__(self) -> None:
        self.images: Tensor | None = None
        self.loss = float("inf")

    def keep(self, metrics: Metrics) -> None:
        """Keep the images of a step if its loss is less than that of all steps before."""
        if self.images is None or metrics["loss"].item() < self.loss:
            self.images, self.loss = metrics["images"].clone(), metrics["loss"].item()


def hardness_factors(logits: Tensor, y: Tensor, hardness: float) -> Tensor:  # [B, C], [B] -> [B]
    """``(1 - softmax(logits)[y])^hardness`` without gradient: examples that the ensemble finds hard count more."""
    certainty = logits.detach().softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return (1 - certainty) ** hardness


def counted_images(rule: str, logits: Tensor, student: Tensor, y: Tensor) -> Tensor:  # [B, C], [B, C], [B] -> [B]
    """Which images count in an adversarial loss.

    Args:
        rule: ``all``. ``disagreement``: ensemble and student predict different classes. ``ensemble_right``: the ensemble predicts the
            label, and the student does not. ``one_right``: exactly one of them predicts the label.
        logits: the ensemble's logits.
        student: the student's logits.
        y: labels.
    """
    predicted, by_student = logits.argmax(-1), student.argmax(-1)
    if rule == "disagreement":
        return predicted != by_student
    if rule == "ensemble_right":
        return (predicted == y) & (by_student != y)
    return (predicted == y) ^ (by_student == y) if rule == "one_right" else torch.ones_like(y, dtype=torch.bool)


def ensemble_parts(teachers: Sequence[Member], weights: Tensor | None = None) -> State:
    """An ensemble as parts of the state that a loss receives as ``broadcast``."""
    parts = {f"teacher-{number}": teacher.tensors for number, teacher in enumerate(teachers)}
    return parts if weights is None else {**parts, "ensemble": {"weights": weights}}


def ensemble_members(broadcast: State, networks: Sequence[nn.Module]) -> list[Member]:
    """The teachers in the parts of :func:`ensemble_parts`.

    Args:
        broadcast: the parts.
        networks: the network of each teacher.
    """
    return [Member(network, broadcast[f"teacher-{number}"]) for number, network in enumerate(networks)]


def ensemble_weights(broadcast: State) -> Tensor | None:  # [K] or [C, K]
    """The weights in the parts of :func:`ensemble_parts`; None where there are none."""
    return broadcast.get("ensemble", {}).get("weights")


def ensemble_logits(teachers: Sequence[Member], x: Tensor) -> Tensor:  # [B, channels, height, width] -> [K, B, C]
    """The logits of all teachers in eval mode. Gradients reach the images alone."""
    return torch.stack([FunctionalModel(network).at(tensors)(x).logits for network, tensors in teachers])


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
