"""DENSE: the server makes images on which the clients' ensemble is sure, and distils it into one model; no data, and one round if asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd.distillation.image_synthesis import Synthesis, as_seen, stacked
from fedkd.distillation.logit_distillation import logits_on
from fedkd.errors import require
from fedkd.federation.aggregation import assemble_model
from fedkd.federation.server import Server
from fedkd.losses.kl import kl_divergence
from fedkd.models.ensemble import Ensemble
from fedkd.seed import Seed
from fedkd.server_distillation import ServerDistillation
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.loop import fit
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Generated, Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class Dense(ServerDistillation):
    """Server, by epochs: images x from the clients' mean logits z (:mod:`fedkd.distillation.image_synthesis`); then ``T^2 KL(softmax(z/T) || softmax(z_w/T))`` on all x so far.

    Zhang, Chen, Li, Lyu, Wu, Ding, Shen, Wu: DENSE: Data-free one-shot federated learning, NeurIPS 2022; the settings are those of its
    public code. One shot is ``rounds=1`` with every client in it and many local epochs; more rounds go on from the student. epochs = 0
    with ``student: average`` is FedAvg.

    Deviations: the student begins as shipped from the clients' mean, in the public code ``fresh``; the generator is smaller and begins
    as torch's layers do; generated images are not augmented, the last batch of a generator is kept and not the best of all its steps, and the
    pool of images is emptied after a round. The teachers' BatchNorm statistics must travel. Unlike networks are not implemented.

    Args:
        generator: ``task -> module(noise, y)`` of images.
        generator_optimizer: ``parameters -> optimizer`` of generator and noise.
        generator_steps: > 0, of each batch of images.
        epochs: >= 0, batches of images, and passes over all so far.
        batch_size: > 1, images of an epoch.
        bn: >= 0, weight of the distance to the teachers' BatchNorm statistics.
        oh: >= 0, weight of the cross-entropy with the drawn labels.
        adv: >= 0, weight of the disagreement of ensemble and student.
        temperature: > 0, T.
        student_optimizer: ``parameters -> optimizer``.
        student_steps: > 0, batches of an epoch; null is a pass over all images.
        student: begins as the ``average`` of the clients' models, or ``fresh``.
    """

    server_summary: ClassVar[str] = "mean of models; distils the ensemble on generated images"

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
    student_steps: int | None
    student: Literal["average", "fresh"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "bn", "oh", "adv"):
            require(getattr(self, name) >= 0, name, "must be >= 0 (0 switches it off)", getattr(self, name))
        for name, least in (("generator_steps", 0), ("batch_size", 1), ("temperature", 0)):
            require(getattr(self, name) > least, name, f"must be > {least}", getattr(self, name))
        require(
            self.student_steps is None or self.student_steps > 0, "student_steps", "must be > 0, or null for a pass", self.student_steps
        )
        self.need_images(self.generator)
        self.synthesis = Synthesis(
            self.generator, self.generator_optimizer, self.generator_steps, self.batch_size, self.bn, self.oh, self.adv
        )  # fmt: skip

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        after, metrics = super().aggregate(server, {"model": state["model"]}, updates, server_round)
        begin = after["model"] if self.student == "average" else server.initial
        student, made, more = self.distil(server, begin, [u.state["model"] for u in updates])
        members = {f"member-{u.client}": u.state["model"] for u in updates}
        return {"model": student, "average": after["model"], **made, **members}, {**metrics, **more}

    def distil(self, server: Server, student: Tensors, models: Sequence[Tensors]) -> tuple[Tensors, State, Metrics]:
        """The student after all epochs, the last batch of images with its labels (``made``), and the mean of every term."""
        teachers, optimizer, metric_sums = stacked(models), None, {}
        images, said, made = student[next(iter(student))].new_zeros(0), [], {}
        for epoch in range(self.epochs):
            seed = server.seed / "epoch" / epoch
            x, terms = self.synthesis(server.model, teachers, student, server.task, seed)
            fresh, made = as_seen(x), {"made": {"images": x.contiguous(), "y": self.synthesis.labels(server.task, seed).to(x.device)}}
            said.append(torch.stack([logits_on(server.model, one, fresh, self.batch_size, server.dtype) for one in models]).mean(0))
            images = torch.cat([images, x]) if len(images) else x
            batches = self.material(as_seen(images), torch.cat(said), seed, server.dtype)
            fitted = fit(server.model, student, batches, self.distillation, self.student_optimizer, optimizer_state=optimizer)
            student, optimizer = fitted.tensors, fitted.optimizer
            terms = {
                **{f"synthesis_{name}": value for name, value in terms.items()},
                "distillation_loss": fitted.sums["loss"] / len(batches),
            }
            metric_sums = {name: metric_sums.get(name, 0) + value / self.epochs for name, value in terms.items()}
        return student, made, metric_sums

    def material(self, images: Examples, teacher: Tensor, seed: Seed, dtype: torch.dtype) -> Batches:
        """An epoch's steps over all images, in a fresh order."""
        number = -(-len(images) // self.batch_size) if self.student_steps is None else self.student_steps
        orders = [
            torch.randperm(len(images), generator=(seed / "order" / n).torch()) for n in range(-(-number * self.batch_size // len(images)))
        ]
        index = torch.cat(orders)[: number * self.batch_size].view(number, self.batch_size).to(images.y.device)
        return Batches(images.y[index], index, images, dtype, {"teacher": teacher[index]})

    def distillation(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """``T^2 KL(softmax(z / T) || softmax(z_w / T))``, the mean over a batch."""
        return kl_divergence(batch.teacher, model(batch.x).logits, self.temperature).mean(), {}

    def generate(self, server: Server, state: State, y: Tensor, seed: Seed) -> Generated | None:
        """The last batch of the round: its generator is gone, and can be asked for nothing else."""
        return Generated(state["made"]["images"], state["made"]["y"], embeddings=False) if "made" in state else None

    def extra_models(self, server: Server, state: State) -> dict[str, Callable[[Tensor], Any]]:
        """The mean of the clients' models, and their ensemble: what the student began from and what it learnt from."""
        members = [
            assemble_model(server.model, server.initial, tensors) for name, tensors in sorted(state.items()) if name.startswith("member-")
        ]
        return {**super().extra_models(server, state), **({"ensemble_test_accuracy": Ensemble(members)} if members else {})}
