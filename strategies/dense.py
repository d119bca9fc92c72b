"""DENSE: the server makes synthetic images for the clients' ensemble and distills it into one model, without data and in one round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd.distillation.image_synthesis import Synthesis, as_examples
from fedkd.distillation.logit_distillation import compute_logits
from fedkd.errors import require
from fedkd.federation.aggregation import AGGREGATION_PARTS
from fedkd.federation.server import Server
from fedkd.losses.kl import kl_divergence
from fedkd.models.ensemble import Member, combine_logits
from fedkd.seed import Seed
from fedkd.server_distillation import ServerDistillation
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.loop import fit
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Input, Metrics, State, Tensors, Update, parts_of


@dataclass(kw_only=True)
class Dense(ServerDistillation):
    """Client: ``CE(z, y)``.

    Generator: ``bn L_bn + oh CE(z_E, y) + adv L_adv``.

    Statistics: ``L_bn = sum_kl (||var - var_kl|| + ||mean - mean_kl||)``.

    Adversarial: ``L_adv = -mean(1[argmax z_E != argmax z_w] KL(softmax(z_E) || softmax(z_w)))``.

    Server: ``T^2 KL(softmax(z_E / T) || softmax(z_w / T))`` on all images so far.

    ``z_E = mean_k z_k(x)`` are the logits of the ensemble on synthetic images x = G(noise), and z_w those of the student. mean_kl and
    var_kl are the running statistics of BatchNorm layer l of client k, mean and var those of its input.

    Clients may have different networks (``model=heterogeneous``). All of them teach. The student has the first network, and the mean is
    that of the clients with this network. A client with another network keeps its own model and is tested with it.

    Each epoch trains a new generator with its noise for one batch of images, then the student on all images so far. One shot is
    ``rounds=1`` with all clients and many local epochs. With more rounds the next round starts from the student. epochs = 0 with
    ``student=average`` is FedAvg.

    Source:
        Zhang, Chen, Li, Lyu, Wu, Ding, Shen, Wu: DENSE: Data-free one-shot federated learning, NeurIPS 2022. The shipped weights and
            optimizers are those of the public code. ``experiment=dense_public_code`` has all its values.
        Public code: zj-jayzhang/DENSE @ 237c5dd.

    Args:
        generator: ``task -> module(noise, y)`` that makes images.
        generator_optimizer: ``parameters -> optimizer`` of generator and noise.
        generator_steps: Steps for each batch of images, > 0.
        epochs: Batches of images, and passes over all images so far, per round, >= 0.
        batch_size: Images per epoch, > 1.
        bn: Weight of the distance to the teachers' BatchNorm statistics, >= 0.
        oh: Weight of the cross-entropy with the drawn labels, >= 0.
        adv: Weight of the disagreement of ensemble and student, >= 0.
        temperature: Temperature T of the distillation, > 0.
        student_optimizer: ``parameters -> optimizer`` of the student.
        keep: Images of a generator that are kept: of the ``last`` step, or of the step with the least loss (``best``, public code).
        student_steps: Batches per epoch, > 0. null means one pass over all images.
        student: Start from the ``average`` of the clients' models, or ``fresh``.
        student_statistics: BatchNorm statistics of the student: of the ``images`` on which it trains, or the ``average`` of the clients',
            which is kept. ``average`` needs a student that starts from the average.

    Deviations:
        - From the public code: the student starts from the clients' mean as shipped. The public code's starts ``fresh``.
        - From the public code: as shipped, the generator, the batches and the number of epochs are smaller, the generator has
          PyTorch's default initialization, and its last images are kept.
        - From the public code: generated images are not augmented.
        - The pool of images is emptied after each round.
        - The public code has one network for all clients of a run.
        - BatchNorm statistics must be averaged, because the teachers need them.
    """

    inputs: ClassVar[tuple[Input, ...]] = ("image",)
    server_summary: ClassVar[str] = "mean of models, then distillation of the ensemble on generated images"

    generator: Callable[..., nn.Module]
    generator_optimizer: OptimizerFactory
    generator_steps: int
    epochs: int
    batch_size: int
    bn: float
    oh: float
    adv: float
    temperature: float
    student_optimizer: OptimizerFactory
    keep: Literal["last", "best"]
    student_steps: int | None
    student: Literal["average", "fresh"]
    student_statistics: Literal["images", "average"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "bn", "oh", "adv"):
            require(getattr(self, name) >= 0, name, "must be >= 0 (0 switches it off)", getattr(self, name))
        for name, least in (("generator_steps", 0), ("batch_size", 1), ("temperature", 0)):
            require(getattr(self, name) > least, name, f"must be > {least}", getattr(self, name))
        require(
            self.student_steps is None or self.student_steps > 0, "student_steps", "must be > 0, or null for a pass", self.student_steps
        )
        self.require_statistics_of_data(self.student_statistics, self.student)
        self.require_image_generator(self.generator)
        self.synthesis = Synthesis(
            self.generator, self.generator_optimizer, self.generator_steps, self.batch_size, self.bn, self.oh, self.adv, keep=self.keep
        )  # fmt: skip

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the models, then distill their ensemble into the student. The round's models are kept for evaluation."""
        after, metrics = super().aggregate(server, parts_of(state, "model", *AGGREGATION_PARTS), updates, server_round)
        begin = after["model"] if self.student == "average" else server.initial
        student, made, more = self.distill(server, begin, self.teachers(server, updates))
        members = {f"member-{u.client}": u.state["model"] for u in updates}
        return {**after, "model": student, "average": after["model"], **made, **members}, {**metrics, **more}

    def server_steps(self, server: Server, updates: Sequence[Update], server_round: int) -> int:
        """All steps of generators and student."""
        passes = self.epochs * (self.epochs + 1) // 2 if self.student_steps is None else self.epochs * self.student_steps
        return self.epochs * self.generator_steps + passes

    def distill(self, server: Server, student: Tensors, teachers: Sequence[Member]) -> tuple[Tensors, State, Metrics]:
        """All epochs of one round.

        Returns the student, the last batch of images with its labels (``made``), and the mean of every metric.
        """
        optimizer = None
        images, teacher_logits = student[next(iter(student))].new_zeros(0), list[Tensor]()
        made: State = {}
        means: Metrics = {}
        for epoch in range(self.epochs):
            seed = server.seed / "epoch" / epoch
            x, terms = self.synthesis(teachers, Member(server.model, student), server.task, seed)
            new_images, made = (
                as_examples(x),
                {"made": {"images": x.contiguous(), "y": self.synthesis.labels(server.task, seed).to(x.device)}},
            )
            logits = [compute_logits(*teacher, new_images, self.batch_size, server.dtype) for teacher in teachers]
            teacher_logits.append(combine_logits(torch.stack(logits)))
            images = torch.cat([images, x]) if len(images) else x
            batches = self.batches_of(as_examples(images), torch.cat(teacher_logits), seed, server.dtype)
            fitted = fit(server.model, student, batches, self.distillation, self.student_optimizer, optimizer_state=optimizer)
            keeps = self.student_statistics == "average"
            student, optimizer = self.with_statistics(server, fitted.tensors, student) if keeps else fitted.tensors, fitted.optimizer
            terms = {
                **{f"synthesis_{name}": value for name, value in terms.items()},
                "distillation_loss": fitted.metric_sums["loss"] / len(batches),
            }
            means = {name: means.get(name, 0) + value / self.epochs for name, value in terms.items()}
        return student, made, means

    def batches_of(self, images: Examples, teacher_logits: Tensor, seed: Seed, dtype: torch.dtype) -> Batches:
        """The batches of one epoch: passes over all images in new orders."""
        number = -(-len(images) // self.batch_size) if self.student_steps is None else self.student_steps
        orders = [
            torch.randperm(len(images), generator=(seed / "order" / n).torch()) for n in range(-(-number * self.batch_size // len(images)))
        ]
        index = torch.cat(orders)[: number * self.batch_size].view(number, self.batch_size).to(images.y.device)
        return Batches(images.y[index], index, images, dtype, {"teacher": teacher_logits[index]})

    def distillation(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """``T^2 KL(softmax(z / T) || softmax(z_w / T))``, mean over the batch."""
        return kl_divergence(batch.teacher, model(batch.x).logits, self.temperature).mean(), {}
