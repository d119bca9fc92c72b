"""Training of a student by a distillation method, one epoch at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn

from fedkd.data.augmentation import Augmentation, black_pixel
from fedkd.distillation.image_sources import ImageSource, Teachers
from fedkd.distillation.methods.base import Distiller, EpochSteps, StudentModule
from fedkd.errors import DivergedError
from fedkd.models.ensemble import EnsembleModel, Member
from fedkd.seed import Seed
from fedkd.tensor_ops import channels_last
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, submodule_tensors, trained_names
from fedkd.training.loop import Execution, FitResult, fit
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Metrics, State, Task, Tensors


@dataclass(frozen=True)
class Progress:
    """A training between two epochs.

    Args:
        epoch: number of epochs that are done.
        tensors: the tensors of the student and of the method's modules.
        optimizer: the state of the optimizer.
        source_state: the state of the image source.
    """

    epoch: int
    tensors: Tensors
    optimizer: Tensors = field(default_factory=dict)
    source_state: Tensors = field(default_factory=dict)


@dataclass(eq=False)
class Training:
    """The training of one student.

    Args:
        task: the classification task.
        distiller: the distillation method.
        learner: the student and the method's modules. Their parameters are overwritten before every use.
        teacher: the teacher's module. None for methods without a teacher.
        teacher_tensors: the tensors of the teacher. Empty for methods without a teacher.
        source: the source of the images.
        fixed_images: the images of the source that do not change. None if all images are synthesized.
        scaling: examples that define how images are normalized.
        augmentation: the augmentation of each batch.
        optimizer: ``parameters -> optimizer``.
        batch_size: images per step.
        steps: steps per epoch. None for one pass over the images.
        epochs: number of epochs.
        schedule: factor of the learning rate in each epoch.
        seed: seed of this training.
        dtype: type of weights and images.
        execution: how steps are computed.
    """

    task: Task
    distiller: Distiller
    learner: StudentModule
    teacher: StudentModule | None
    teacher_tensors: Tensors
    source: ImageSource
    fixed_images: Examples | None
    scaling: Examples
    augmentation: Augmentation
    optimizer: OptimizerFactory
    batch_size: int
    steps: int | None
    epochs: int
    schedule: Sequence[float]
    seed: Seed
    dtype: torch.dtype = torch.float32
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        black = black_pixel(self.scaling, self.dtype).to(next(self.learner.parameters()).device)
        self.broadcast: State = {"teacher": self.teacher_tensors, "images": {"black": black}}

    def epoch(self, progress: Progress) -> tuple[Progress, Metrics]:
        """Train for one epoch.

        Returns:
            The progress after the epoch, and the mean of each term over its steps.

        Raises:
            DivergedError: the loss is not finite. The message names the step and the term.
        """
        seed = self.seed / "epoch" / progress.epoch
        if self.distiller.resets_optimizer(progress.epoch):
            progress = replace(progress, optimizer={})
        teachers = self.teachers(progress.tensors) if self.source.needs_teachers else None
        pool = self.source.images_for_epoch(self.fixed_images, progress.source_state, teachers, seed / "source", self.dtype)
        batches = self.batches(pool.examples, progress.epoch, seed)
        try:
            fitted = self.fit(progress, batches)
        except FloatingPointError as error:
            loss = getattr(error, "loss", None)
            raise DivergedError(self.find_divergence(progress, batches), round=progress.epoch + 1, loss=loss) from error
        means = {name: value / len(batches) for name, value in fitted.metric_sums.items()}
        return Progress(progress.epoch + 1, fitted.tensors, fitted.optimizer, pool.state), {**means, **pool.metrics}

    def teachers(self, tensors: Tensors) -> Teachers:
        """The teachers, and the student with its current ``tensors``, from which images are synthesized."""
        assert self.teacher is not None, "images are synthesized from a teacher"
        student, student_tensors = next(iter(self.distiller.networks(self.learner, tensors).values()))
        network = self.teacher.student
        weights = network.weights if isinstance(network, EnsembleModel) else None
        return Teachers(self.task, teacher_members(network, self.teacher_tensors), Member(student, student_tensors), weights)

    def batches(self, images: Examples, epoch: int, seed: Seed) -> Batches:
        """The batches [S, B] of an epoch, with all random choices.

        Each pass over the images has a new order. Its last batch is left out if it is incomplete.
        """
        size = min(self.batch_size, len(images))
        steps_per_pass = len(images) // size
        num_steps = steps_per_pass if self.steps is None else self.steps
        generator = (seed / "order").torch()
        orders = [
            example_order(images, generator)[: steps_per_pass * size].view(steps_per_pass, size)
            for _ in range(-(-num_steps // steps_per_pass))
        ]
        index = torch.cat(orders)[:num_steps].to(images.y.device)
        drawn = self.augmentation.draw(num_steps, size, seed / "augmentation")
        drawn |= self.distiller.draw(EpochSteps(num_steps, size, epoch, self.epochs, seed / "method"))
        drawn = {name: value.to(index.device, self.dtype if value.is_floating_point() else value.dtype) for name, value in drawn.items()}
        return Batches(images.y[index], index, images, self.dtype, drawn)

    def fit(self, progress: Progress, batches: Batches) -> FitResult:
        """Train on these batches, from ``progress``."""
        return fit(
            self.learner,
            progress.tensors,
            batches,
            self.loss,
            partial(self.make_optimizer, epoch=progress.epoch),
            broadcast=self.broadcast,
            optimizer_state=progress.optimizer,
            schedule=[self.schedule[progress.epoch]] * len(batches),
            execution=self.execution,
        )

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """The loss of the method on augmented images, and its terms."""
        assert batch.x is not None, "a student is trained on images"
        teacher = None if self.teacher is None else FunctionalModel(self.teacher).at(broadcast["teacher"])
        names: tuple[str, ...] = ("moves", "mirrored")
        draws = {name: batch.drawn[name] for name in names if name in batch.drawn}
        x = channels_last(self.augmentation(batch.x, draws, broadcast["images"]["black"]))
        return self.distiller.loss(model, teacher, replace(batch, x=x), self.source.labeled)

    def make_optimizer(self, parameters: Iterable[Tensor], epoch: int) -> torch.optim.Optimizer:
        """The optimizer of an epoch. A method can give its own modules another learning rate."""
        names = trained_names(self.learner)
        groups = groupby(zip(names, parameters, strict=True), key=lambda item: self.distiller.lr_factor_of(item[0], epoch))
        by_factor = [(factor, [parameter for _, parameter in group]) for factor, group in groups]
        optimizer = self.optimizer([{"params": group} for _, group in by_factor])
        for group, (factor, _) in zip(optimizer.param_groups, by_factor, strict=True):
            group["lr"] = group["lr"] * factor
        return optimizer

    def find_divergence(self, progress: Progress, batches: Batches) -> str:
        """The step and the term in which the loss is not finite, as an error message. The steps are computed again one by one."""
        assert batches.index is not None, "a student is trained on images"
        for step in range(len(batches)):
            at = slice(step, step + 1)
            drawn = {name: value[at] for name, value in batches.drawn.items()}
            batch = replace(batches, y=batches.y[at], index=batches.index[at], drawn=drawn)
            terms = self.terms(progress, batch)
            if bad := [name for name, value in terms.items() if not torch.isfinite(value)]:
                place = f"in step {step + 1} of epoch {progress.epoch + 1}"
                return f"the loss is no longer finite {place}, where {', '.join(bad)} is {terms[bad[0]].item()}: lower the learning rate"
            fitted = self.fit(progress, batch)
            progress = replace(progress, tensors=fitted.tensors, optimizer=fitted.optimizer)
        return f"the loss is no longer finite in epoch {progress.epoch + 1}: lower the learning rate"

    def terms(self, progress: Progress, batches: Batches) -> Metrics:
        """The terms of the loss in the first of these steps."""
        tensors = {key: value.clone() for key, value in progress.tensors.items()}
        _, terms = self.loss(FunctionalModel(self.learner.train(), tensors), next(iter(batches)), self.broadcast, {})
        return {name: value.detach() for name, value in terms.items()}


def example_order(examples: Examples, generator: torch.Generator) -> Tensor:  # [N]
    """A random order of all examples.

    Where examples have groups, one example of each group follows the other, until the smallest group is used up. The others follow in
    random order.
    """
    if examples.groups is None:
        return torch.randperm(len(examples), generator=generator)
    group_of = examples.groups.cpu()
    groups = [torch.nonzero(group_of == group).flatten() for group in group_of.unique()]
    smallest = min(map(len, groups))
    shuffled = [group[torch.randperm(len(group), generator=generator)] for group in groups]
    in_turn = torch.stack([group[:smallest] for group in shuffled], 1).flatten()
    rest = torch.cat([group[smallest:] for group in shuffled])
    return torch.cat([in_turn, rest[torch.randperm(len(rest), generator=generator)] if len(rest) else rest])


def teacher_members(network: nn.Module, teacher_tensors: Tensors) -> list[Member]:
    """The models that a teacher consists of. A single network is its only member."""
    tensors = submodule_tensors(teacher_tensors, "student")
    return network.split_members(tensors) if isinstance(network, EnsembleModel) else [Member(network, tensors)]
