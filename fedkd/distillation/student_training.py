"""One student's training by a distiller, epoch by epoch: what an epoch begins with and what it leaves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn

from fedkd.data.augmentation import Augmentation, black_pixel
from fedkd.distillation.image_sources import ImageSource, Teachers
from fedkd.distillation.methods.base import Distiller, Steps, StudentModule
from fedkd.errors import DivergedError
from fedkd.seed import Seed
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, submodule_tensors
from fedkd.training.loop import Execution, FitResult, fit
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Metrics, State, Task, Tensors


@dataclass(frozen=True)
class Progress:
    """A training between two epochs.

    Args:
        epoch: done so far.
        tensors: of the learner.
        optimizer: its state.
        memory: the source's.
    """

    epoch: int
    tensors: Tensors
    optimizer: Tensors = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)


@dataclass(eq=False)
class Training:
    """A student, a teacher, a method, and where the images come from.

    Args:
        task: what is learnt.
        distiller: the method.
        learner: all that trains; its own values are a workspace.
        teacher: the teacher's form, a :class:`StudentModule`; None where the method needs none.
        taught: the teacher's tensors.
        source: where images come from.
        pool: the source's images, where they do not change.
        scaling: how the task's images become floats.
        augmentation: of every batch.
        optimizer: ``parameters -> optimizer``.
        batch_size: of every step.
        steps: of an epoch; None is a pass over the images.
        epochs: of the whole training.
        schedule: what the learning rate is multiplied by, one number an epoch.
        seed: this training's.
        dtype: of weights and images.
        execution: how steps are computed.
    """

    task: Task
    distiller: Distiller
    learner: StudentModule
    teacher: StudentModule | None
    taught: Tensors
    source: ImageSource
    pool: Examples | None
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
        self.black = black_pixel(self.scaling, self.dtype).to(next(self.learner.parameters()).device)

    def epoch(self, progress: Progress) -> tuple[Progress, Metrics]:
        """One epoch more, and the mean of every term over its steps.

        Raises:
            DivergedError: the loss is no longer finite; says in which epoch and step, and which term.
        """
        seed = self.seed / "epoch" / progress.epoch
        if self.distiller.forgets(progress.epoch):
            progress = replace(progress, optimizer={})
        pool = self.source.refresh(self.pool, progress.memory, self.knowledge(progress.tensors), seed / "source", self.dtype)
        batches = self.batches(pool.examples, progress.epoch, seed)
        try:
            fitted = self.fit(progress, batches)
        except FloatingPointError as error:
            raise DivergedError(self.culprit(progress, batches)) from error
        means = {name: value / len(batches) for name, value in fitted.metric_sums.items()}
        return Progress(progress.epoch + 1, fitted.tensors, fitted.optimizer, pool.memory), {**means, **pool.metrics}

    def knowledge(self, tensors: Tensors) -> Teachers | None:
        """What images may be made from; None for a source that does not look."""
        if not self.source.looks:
            return None
        assert self.teacher is not None, "images are made from a teacher"
        student, learnt = next(iter(self.distiller.networks(self.learner, tensors).values()))
        network, teachers = members(self.teacher.student, self.taught)
        return Teachers(self.task, network, teachers, student, learnt)

    def batches(self, pool: Examples, epoch: int, seed: Seed) -> Batches:
        """The steps of an epoch: passes in fresh orders without their ragged ends, with all that is drawn."""
        size = min(self.batch_size, len(pool))
        each = len(pool) // size
        number = each if self.steps is None else self.steps
        random = (seed / "order").torch()
        orders = [order(pool, random)[: each * size].view(each, size) for _ in range(-(-number // each))]
        index = torch.cat(orders)[:number].to(pool.y.device)
        drawn = self.augmentation.draw(number, size, seed / "augmentation")
        drawn |= self.distiller.draw(Steps(number, size, epoch, self.epochs, seed / "method"))
        drawn = {name: value.to(index.device, self.dtype if value.is_floating_point() else value.dtype) for name, value in drawn.items()}
        return Batches(pool.y[index], index, pool, self.dtype, drawn)

    def fit(self, progress: Progress, batches: Batches) -> FitResult:
        """Train from ``progress`` on these steps."""
        rates = [self.schedule[progress.epoch]] * len(batches)
        shared: State = {"teacher": self.taught, "images": {"black": self.black}}
        stepper = partial(self.stepper, epoch=progress.epoch)
        return fit(
            self.learner, progress.tensors, batches, self.loss, stepper, broadcast=shared, optimizer_state=progress.optimizer,
            schedule=rates, execution=self.execution,
        )  # fmt: skip

    def loss(self, model: FunctionalModel, batch: Batch, shared: State, own: State) -> tuple[Tensor, Metrics]:
        """What the method minimises, on images moved and mirrored."""
        assert batch.x is not None, "a student is trained on images"
        teacher = None if self.teacher is None else FunctionalModel(self.teacher).at(shared["teacher"])
        draws = {name: batch.drawn[name] for name in ("moves", "mirrored") if name in batch.drawn}
        x = self.augmentation(batch.x, draws, shared["images"]["black"]).contiguous(memory_format=torch.channels_last)
        return self.distiller.loss(model, teacher, replace(batch, x=x), self.source.labelled)

    def stepper(self, leaves: Iterable[Tensor], epoch: int) -> torch.optim.Optimizer:
        """The optimizer, of which some of the method's modules take their own rate."""
        names = [name for name, _ in self.learner.named_parameters()]
        groups = groupby(zip(names, leaves, strict=True), key=lambda one: self.distiller.lr_of(one[0], epoch))
        rated = [(rate, [leaf for _, leaf in group]) for rate, group in groups]
        made = self.optimizer([{"params": parameters} for _, parameters in rated])
        for group, (rate, _) in zip(made.param_groups, rated, strict=True):
            group["lr"] = group["lr"] * rate
        return made

    def culprit(self, progress: Progress, batches: Batches) -> str:
        """Which step of these, and which term, is not finite: they are done again, one by one."""
        for step in range(len(batches)):
            at = slice(step, step + 1)
            drawn = {name: value[at] for name, value in batches.drawn.items()}
            one = replace(batches, y=batches.y[at], index=batches.index[at], drawn=drawn)
            terms = self.terms(progress, one)
            if bad := [name for name, value in terms.items() if not torch.isfinite(value)]:
                place = f"in step {step + 1} of epoch {progress.epoch + 1}"
                return f"the loss is no longer finite {place}, where {', '.join(bad)} is {terms[bad[0]].item()}: lower the learning rate"
            fitted = self.fit(progress, one)
            progress = replace(progress, tensors=fitted.tensors, optimizer=fitted.optimizer)
        return f"the loss is no longer finite in epoch {progress.epoch + 1}: lower the learning rate"

    def terms(self, progress: Progress, batches: Batches) -> Metrics:
        """The terms of one step."""
        shared: State = {"teacher": self.taught, "images": {"black": self.black}}
        tensors = {key: value.clone() for key, value in progress.tensors.items()}
        _, terms = self.loss(FunctionalModel(self.learner.train(), tensors), next(iter(batches)), shared, {})
        return {name: value.detach() for name, value in terms.items()}


def order(pool: Examples, random: torch.Generator) -> Tensor:  # [N]
    """A fresh order of all examples; where they are in groups, of which the smallest sets the pace, one of each group after the other."""
    if pool.groups is None:
        return torch.randperm(len(pool), generator=random)
    groups = [torch.nonzero(pool.groups.cpu() == group).flatten() for group in pool.groups.cpu().unique()]
    least = min(map(len, groups))
    shuffled = [group[torch.randperm(len(group), generator=random)] for group in groups]
    turns = torch.stack([group[:least] for group in shuffled], 1).flatten()
    return torch.cat([turns, torch.cat([group[least:] for group in shuffled])])


def members(network: nn.Module, taught: Tensors) -> tuple[nn.Module, list[Tensors]]:
    """The form and the tensors of each of the networks that a teacher is made of."""
    own = submodule_tensors(taught, "student")
    return (network, [own]) if not hasattr(network, "parted") else network.split_members(own)
