"""FedFTG: the server fine-tunes the mean model on generated images on which it disagrees with the clients."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd.distillation.generator_state import cached_generator
from fedkd.distillation.image_synthesis import stack_models, unstack_models
from fedkd.errors import require
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.diversity import diversity, noise_distances
from fedkd.losses.kl import kl_divergence
from fedkd.server_distillation import GeneratorDistillation
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.loop import fit
from fedkd.training.optimizers import OptimizerFactory, scale_lr
from fedkd.types import Metrics, State, Update


@dataclass(kw_only=True)
class FedFTG(GeneratorDistillation):
    """Client: ``CE(z, y)``.

    Generator: ``-mean(a_k d(z_w, z_k)) + cls a_k CE(z_k, y) + dis L_div / K``, for one client k per step.

    Server: ``CE(sum_k a_k softmax(z_k), z_w)`` on x = G(noise, y), starting from ``w <- sum_k (n_k / n) w_k``.

    z_w and z_k are the logits of the global model and of client k. ``a_k`` is client k's share of the round's examples with label y, and d
    the discrepancy. The labels y of a round have the proportions of its label counts. L_div is FedGen's diversity term. iterations = 0 is
    FedAvg.

    Source:
        Zhang, Shen, Ding, Tao, Duan: Fine-tuning global model via data-free knowledge distillation for non-IID federated learning, CVPR
            2022. The shipped values are those of the public code.
        Public code: ZhangLin-PKU/FedFTG @ 1e6347c.

    Args:
        generator: ``task -> module(noise, y)`` that makes images.
        generator_optimizer: ``parameters -> optimizer`` of the generator, new in each round.
        generator_lr_decay: Factor of its learning rate per round, in (0, 1].
        iterations: Alternations of generator and model training per round, >= 0. Each has one batch of noise and labels for all its steps.
        generator_steps: Generator steps per iteration, each over all clients in turn, > 0.
        student_steps: Model steps per iteration, > 0.
        batch_size: Images per step, > 1.
        student_optimizer: ``parameters -> optimizer`` of the model, new in each round.
        student_lr_decay: Factor of its learning rate per round, in (0, 1].
        cls: Weight of the labels' term, >= 0.
        dis: Weight of the diversity term, >= 0.
        discrepancy: ``l1`` is the mean absolute difference of logits (public code), ``kl`` is ``KL(softmax(z_k) || softmax(z_w))`` (paper).
            The generator's gradient passes through the global model alone.
        weighting: Weight of the labels' term by each label's share (``per_sample``) or by the mean share of the batch (``scalar``, public
            code).
        mean_over_classes: Divide the model's loss by the number of classes, as the public code does.

    Deviations:
        - From the public code: ``optimizer=clipped_sgd`` clips the norm of clients' gradients at 10, as the public code does. Other
          optimizers do not.
        - As in the public code, both networks are in eval mode while the generator trains. The model trains on images made in eval mode.
        - BatchNorm statistics must be averaged, because the teachers need them. The model keeps this average when it trains on generated
          images.
    """

    server_summary: ClassVar[str] = "mean of models, then distillation of the ensemble on hard generated images"

    generator_optimizer: OptimizerFactory
    generator_lr_decay: float
    iterations: int
    generator_steps: int
    student_steps: int
    batch_size: int
    student_optimizer: OptimizerFactory
    student_lr_decay: float
    cls: float
    dis: float
    discrepancy: Literal["l1", "kl"]
    weighting: Literal["per_sample", "scalar"]
    mean_over_classes: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "cls", "dis"):
            require(getattr(self, name) >= 0, name, "must be >= 0 (0 switches it off)", getattr(self, name))
        for name, least in (("generator_steps", 0), ("student_steps", 0), ("batch_size", 1)):
            require(getattr(self, name) > least, name, f"must be > {least}", getattr(self, name))
        for name in ("generator_lr_decay", "student_lr_decay"):
            require(0 < getattr(self, name) <= 1, name, "must be in (0, 1] (1 is no decay)", getattr(self, name))

    @property
    def model_heterogeneity(self) -> Literal["none", "same_embedding_size", "any"]:
        """``none``: a step of the generator chooses its client by number from stacked models."""
        return "none"

    # ------------------------------------------------------------------------------------------- server side
    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the models, then train generator and model in turn."""
        after, metrics = super().aggregate(server, state, updates, server_round)
        counts = torch.stack([u.state["labels"]["counts"] for u in updates])  # [K, C]
        shares = counts.to(server.dtype) / (counts.sum(0).to(server.dtype) + 1e-6)
        fixed = {"teachers": stack_models([u.state["model"] for u in updates]), "labels": {"shares": shares}}
        trained: State = {"generator": after["generator"], "model": after["model"]}
        means: Metrics = {}
        for y, noise in zip(*self.draw_inputs(server, counts.sum(0))):
            trained, more = self.train_generator(server, trained, fixed, y, noise, server_round)
            trained, loss = self.train_model(server, trained, fixed, y, noise, server_round)
            for name, value in {**more, "distillation_loss": loss}.items():
                means[name] = means.get(name, 0) + value / self.iterations
        return {**after, **{part: trained[part] for part in ("generator", "model")}, "average": after["model"]}, {**metrics, **means}

    def server_steps(self, server: Server, updates: Sequence[Update], server_round: int) -> int:
        """All steps of generator and model."""
        return self.iterations * (self.generator_steps * len(updates) + self.student_steps)

    def draw_inputs(self, server: Server, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Labels [I, B] and noise [I, B, Z] of the I iterations of a round. All labels together have the proportions of ``counts`` [C]."""
        y = labels_in_proportion(counts.cpu(), self.iterations * self.batch_size)
        y = y[torch.randperm(len(y), generator=(server.seed / "labels").torch())].view(self.iterations, self.batch_size)
        size = cached_generator(self.generator, server.task).noise_size
        noise = torch.randn(*y.shape, size, generator=(server.seed / "noise").torch(), dtype=server.dtype)
        return y.to(server.device), noise.to(server.device)

    def train_generator(
        self, server: Server, state: State, fixed: State, y: Tensor, noise: Tensor, server_round: int
    ) -> tuple[State, Metrics]:
        """Train the generator for one iteration: ``generator_steps`` passes with one step per client."""
        clients = len(fixed["labels"]["shares"])
        steps = self.generator_steps * clients
        drawn = {"noise": noise.expand(steps, -1, -1), "distances": noise_distances(noise).expand(steps, -1, -1)}
        place = torch.arange(clients, device=server.device).repeat(self.generator_steps)
        fitted = fit(
            cached_generator(self.generator, server.task).to(server.device, server.dtype), state["generator"],
            Batches(y.expand(steps, -1), None, None, server.dtype, {**drawn, "place": place}),
            partial(self.generator_loss, network=server.model),
            scale_lr(self.generator_optimizer, self.generator_lr_decay ** (server_round - 1)),
            broadcast={**fixed, "student": state["model"]}, optimizer_state=state.get("generator_optimizer"),
        )  # fmt: skip
        means = {f"generator_{name}": value / steps for name, value in fitted.metric_sums.items()}
        return {**state, "generator": fitted.tensors, "generator_optimizer": fitted.optimizer}, means

    def generator_loss(
        self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State, *, network: nn.Module
    ) -> tuple[Tensor, Metrics]:
        """The generator's equation for the client of this step (``batch.place``)."""
        x, place = model(batch.noise, batch.y), batch.place.view(1)
        tensors = {key: value.index_select(0, place)[0] for key, value in broadcast["teachers"].items()}
        teacher = FunctionalModel(network).at(tensors)(x).logits
        student = FunctionalModel(network).at(broadcast["student"])(x).logits
        shares = broadcast["labels"]["shares"]
        weight = shares.index_select(0, place)[0][batch.y]  # [B]
        distance = (student - teacher.detach()).abs().mean(-1) if self.discrepancy == "l1" else kl_divergence(teacher, student)
        label = cross_entropy(teacher, batch.y)
        label = (weight * label).mean() if self.weighting == "per_sample" else weight.mean() * label.mean()
        discrepancy, spread = (weight * distance).mean(), diversity(batch.distances, x.flatten(1))
        value = -discrepancy + self.cls * label + self.dis * spread / len(shares)
        return value, {"discrepancy": discrepancy, "label_loss": label, "diversity_loss": spread}

    def train_model(self, server: Server, state: State, fixed: State, y: Tensor, noise: Tensor, server_round: int) -> tuple[State, Tensor]:
        """Train the model for ``student_steps`` on one batch of images. Returns the state and the mean loss.

        BatchNorm layers keep their statistics: those of generated images are not those of data.
        """
        generator = FunctionalModel(cached_generator(self.generator, server.task).to(server.device, server.dtype)).at(state["generator"])
        teachers = [FunctionalModel(server.model).at(tensors) for tensors in unstack_models(fixed["teachers"])]
        with torch.no_grad():  # the generator and the teachers are constant here
            x = generator(noise, y)
            probabilities = torch.stack([teacher(x).logits for teacher in teachers]).softmax(-1)  # [K, B, C]
            target = (fixed["labels"]["shares"][:, y, None] * probabilities).sum(0)
        steps = self.student_steps
        drawn = {"image": x.expand(steps, *x.shape), "target": target.expand(steps, -1, -1)}
        fitted = fit(
            server.model, state["model"], Batches(y.expand(steps, -1), None, None, server.dtype, drawn), self.distillation,
            scale_lr(self.student_optimizer, self.student_lr_decay ** (server_round - 1)), optimizer_state=state.get("student_optimizer"),
        )  # fmt: skip
        model = self.with_statistics(server, fitted.tensors, state["model"])
        return {**state, "model": model, "student_optimizer": fitted.optimizer}, fitted.metric_sums["loss"] / steps

    def distillation(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """Cross-entropy with the clients' weighted probabilities."""
        log_q = model(batch.image).logits.log_softmax(-1)
        value = -(batch.target * log_q).sum(-1).mean()
        return value / log_q.shape[-1] if self.mean_over_classes else value, {}


def labels_in_proportion(counts: Tensor, number: int) -> Tensor:  # [C] -> [number]
    """Labels in ascending order, so that the first c classes together have ``floor(number * their share of counts)`` of them.

    Args:
        counts: number of examples of each class, as integers.
        number: number of labels.
    """
    ends = number * counts.cumsum(0) // counts.sum()
    return torch.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)))
