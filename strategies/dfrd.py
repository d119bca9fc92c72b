"""DFRD: the server fine-tunes a model on images of a conditional generator and of the generator's moving average, without data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd.distillation.generator_state import cached_generator
from fedkd.distillation.image_synthesis import counted_images, ensemble_logits, ensemble_members, ensemble_parts, ensemble_weights
from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.diversity import squared_diversity
from fedkd.losses.kl import kl_divergence
from fedkd.models.ensemble import Member, combine_logits
from fedkd.seed import Seed
from fedkd.server_distillation import GeneratorDistillation
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.loop import fit
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Metrics, State, Tensors, Update

DrawInputs = Callable[[str, int], tuple[Tensor, Tensor]]
"""``(purpose, steps) -> (labels [S, B], noise [S, B, noise_size])``."""


@dataclass(kw_only=True)
class DFRD(GeneratorDistillation):
    """Client: ``CE(z, y)``.

    Ensemble: ``z_E = sum_k t_k[y] z_k(x)``, with client k's share t_k[y] of the round's examples of label y.

    Generator: ``CE(z_E, y) + transfer L_tran + diversity L_div + embedding L_emb``.

    Transfer: ``L_tran = -mean(KL(softmax(z_w / T) || softmax(z_E / T)))`` over the images of ``adversarial``.

    Diversity: ``L_div = exp(-mean_ij (mean_d (x_i - x_j)^2) (mean_d (h_i - h_j)^2))``.

    Embedding: ``L_emb = mean max(|e_y| - norm_bound sqrt(Z), 0)``.

    Server: ``KL(softmax(z_E / T) || softmax(z_w / T))`` on x = G(h), plus ema_weight times the same on images of the generator's average.

    h merges the noise of size Z and the embedding e_y of the label, for example as their product. z_w are the logits of the model, through
    which the generator has no gradient. Labels are drawn in proportion to the round's label counts. The generator is part of the state. So
    is its moving average ``G' <- ema_decay G' + (1 - ema_decay) G`` over rounds, which first trains the model in the second round.
    iterations = 0 is FedAvg, and ema_weight = 0 uses no average. Clients may have different networks, as in DENSE.

    Source:
        Luo, Wang, Fu, Li, Lan, Gao: DFRD: Data-free robustness distillation for heterogeneous federated learning, NeurIPS 2023.
        Public code: HaowenGuan/DFFKE @ 7030348, a copy of the authors' code. ``experiment=dfrd_public_code`` has its values.

    Args:
        generator: ``task -> module(noise, y)`` that makes images, with the parts ``merger`` and ``decoder`` (image_dcgan).
        generator_optimizer: ``parameters -> optimizer``, made anew in each iteration.
        iterations: Alternations of generator and model training per round, >= 0.
        generator_steps: Generator steps per iteration, > 0.
        student_steps: Model steps per iteration, > 0.
        batch_size: Images per step, > 1.
        student_optimizer: ``parameters -> optimizer`` of the model, made anew in each iteration.
        temperature: Temperature T, > 0.
        adversarial: Images that count in L_tran: those on which the ensemble is right and the model wrong (``ensemble_right``), ``all``, or
            those on which exactly one of them is right (``one_right``).
        transfer: Weight of L_tran, >= 0.
        diversity: Weight of L_div, >= 0.
        embedding: Weight of L_emb, >= 0.
        norm_bound: Norm of an embedding in units of sqrt(Z) above which L_emb is positive, >= 0.
        ema_decay: Weight of the past in the generator's moving average, in [0, 1).
        ema_weight: Weight of the average's images in the model's objective, >= 0.
        ema_correction: Begin the average with the first generator. If false, it begins with ``(1 - ema_decay) G`` as in the public code.
        label_weights: Ensemble by label ``counts``, with labels in proportion. ``uniform``: the plain mean, and uniform labels.
        student: The model starts a round from the ``average`` of the clients' models and is broadcast. ``last``: it starts from itself, and
            every client keeps its own model.
        student_statistics: BatchNorm statistics of the student: of the ``images`` on which it trains, or the ``average`` of the clients',
            which is kept. ``average`` needs a student that starts from the average.

    Deviations:
        - From the public code: the shipped generator and the number of iterations are smaller.
        - From the public code: the mean of the clients' models starts a round as shipped, which is an option there.
        - From the public code: a moving average begins with the first generator as shipped. There it begins with half of it.
        - From the public code: where no image counts in L_tran, it is 0. There it is NaN.
        - From the public code: label counts are those of a client's data, and only the round's clients share a label. There they count all
          batches so far and one more per class, and clients without counts enter with 1.
        - From the paper: clients with sub-networks of the model are not implemented.
        - BatchNorm statistics must be averaged, because the teachers need them. The public code's networks have none.
        - From the public code: the student keeps the average of the clients' BatchNorm statistics as shipped, because the public networks
          keep no running statistics. ``student_statistics=images``, which ``student=last`` needs, takes those of the generated images.
    """

    server_summary: ClassVar[str] = "mean of models, then distillation of the ensemble on images of a generator and of its average"

    generator_optimizer: OptimizerFactory
    iterations: int
    generator_steps: int
    student_steps: int
    batch_size: int
    student_optimizer: OptimizerFactory
    temperature: float
    adversarial: Literal["ensemble_right", "all", "one_right"]
    transfer: float
    diversity: float
    embedding: float
    norm_bound: float
    ema_decay: float
    ema_weight: float
    ema_correction: bool
    label_weights: Literal["counts", "uniform"]
    student: Literal["average", "last"]
    student_statistics: Literal["images", "average"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "transfer", "diversity", "embedding", "norm_bound", "ema_weight"):
            require(getattr(self, name) >= 0, name, "must be >= 0 (0 switches it off)", getattr(self, name))
        for name, least in (("generator_steps", 0), ("student_steps", 0), ("batch_size", 1), ("temperature", 0)):
            require(getattr(self, name) > least, name, f"must be > {least}", getattr(self, name))
        require(0 <= self.ema_decay < 1, "ema_decay", "must be in [0, 1) (0 forgets earlier rounds)", self.ema_decay)
        self.require_statistics_of_data(self.student_statistics, self.student)
        kind = getattr(self.generator, "func", self.generator)
        require(getattr(kind, "embeds_labels", False), "generator", "must embed labels (image_dcgan)", getattr(kind, "__name__", kind))

    # ------------------------------------------------------------------------------------------- client side
    def keeps_model(self, client: Client) -> bool:
        """Whether a client trains its own model on: also where the server's model starts from itself."""
        return self.student == "last" or super().keeps_model(client)

    # ------------------------------------------------------------------------------------------- server side
    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the models, then train generator and model in turn. At last, move the generator's average."""
        after, metrics = super().aggregate(server, state, updates, server_round)
        begin = after["model"] if self.student == "average" else state["model"]
        teachers, counts = self.teachers(server, updates), torch.stack([u.state["labels"]["counts"] for u in updates])  # [K, C]
        generator, model, weights = state["generator"], begin, self.ensemble_weights(counts.to(server.dtype))
        earlier = {"ema_": state["ema_generator"]} if self.ema_weight and "ema_generator" in state else {}
        means: Metrics = {}
        for iteration in range(self.iterations):
            draw = partial(self.draw_inputs, server, counts.sum(0), server.seed / "iteration" / iteration)
            generator, terms = self.train_generator(server, generator, model, teachers, weights, draw)
            model, loss = self.train_model(server, model, {"": generator, **earlier}, teachers, weights, draw)
            for name, value in {**terms, "distillation_loss": loss}.items():
                means[name] = means.get(name, 0) + value / self.iterations
        ema = moving_average(state.get("ema_generator"), generator, self.ema_decay, corrected=self.ema_correction)
        return {**after, "model": model, "average": begin, "generator": generator, "ema_generator": ema}, {**metrics, **means}

    def server_steps(self, server: Server, updates: Sequence[Update], server_round: int) -> int:
        """All steps of generator and model."""
        return self.iterations * (self.generator_steps + self.student_steps)

    def ensemble_weights(self, counts: Tensor) -> Tensor | None:  # [K, C] -> [C, K]
        """Each client's share of the examples of each class. 0 for a class that no client has. None for the plain mean."""
        return counts.mT / counts.sum(0).clamp(min=1)[:, None] if self.label_weights == "counts" else None

    def draw_inputs(self, server: Server, counts: Tensor, seed: Seed, purpose: str, steps: int) -> tuple[Tensor, Tensor]:
        """Labels [S, B] and noise [S, B, Z]. Labels are in proportion to ``counts`` [C], or uniform over classes with training examples."""
        if self.label_weights == "uniform":
            counts = torch.zeros_like(counts).index_fill(0, server.task.present.to(counts.device), 1)
        chances = (counts.double() / counts.sum()).cpu().expand(steps, -1)
        y = torch.multinomial(chances, self.batch_size, True, generator=(seed / purpose / "labels").torch())
        size = cached_generator(self.generator, server.task).noise_size
        noise = torch.randn(*y.shape, size, generator=(seed / purpose / "noise").torch(), dtype=server.dtype)
        return y.to(server.device), noise.to(server.device)

    def train_generator(
        self, server: Server, generator: Tensors, model: Tensors, teachers: Sequence[Member], weights: Tensor | None, draw: DrawInputs
    ) -> tuple[Tensors, Metrics]:
        """Train the generator for one iteration. Returns it, and the mean of each term."""
        y, noise = draw("generator", self.generator_steps)
        networks = tuple(teacher.network for teacher in teachers)
        fitted = fit(
            cached_generator(self.generator, server.task).to(server.device, server.dtype), generator,
            Batches(y, None, None, server.dtype, {"noise": noise}),
            partial(self.generator_loss, networks=networks, student_network=server.model), self.generator_optimizer,
            broadcast={**ensemble_parts(teachers, weights), "student": model},
        )  # fmt: skip
        return fitted.tensors, {f"generator_{name}": value / self.generator_steps for name, value in fitted.metric_sums.items()}

    def generator_loss(
        self,
        model: FunctionalModel,
        batch: Batch,
        broadcast: State,
        client_state: State,
        *,
        networks: tuple[nn.Module, ...],
        student_network: nn.Module,
    ) -> tuple[Tensor, Metrics]:
        """The generator's equation, and its terms without weights."""
        merged = model.submodule("merger")(batch.noise, batch.y)
        x = model.submodule("decoder")(merged)
        logits = combine_logits(ensemble_logits(ensemble_members(broadcast, networks), x), ensemble_weights(broadcast), batch.y)
        student = FunctionalModel(student_network).at(broadcast["student"])(x).logits.detach()
        fidelity = cross_entropy(logits, batch.y).mean()
        divergence = kl_divergence(student, logits, self.temperature) / self.temperature**2
        counted = counted_images(self.adversarial, logits, student, batch.y).to(logits.dtype)
        transfer = -(counted * divergence).sum() / counted.sum().clamp(min=1)
        spread = squared_diversity(x.flatten(1), merged)
        norms = model.submodule("merger.embedding")(batch.y).norm(dim=-1)
        norm = (norms - self.norm_bound * batch.noise.shape[-1] ** 0.5).clamp(min=0).mean()
        value = fidelity + self.transfer * transfer + self.diversity * spread + self.embedding * norm
        return value, {"fidelity": fidelity, "transfer": transfer, "diversity_loss": spread, "embedding_norm": norm}

    def train_model(
        self, server: Server, model: Tensors, generators: dict[str, Tensors], teachers: Sequence[Member], weights: Tensor | None,
        draw: DrawInputs,
    ) -> tuple[Tensors, Tensor]:  # fmt: skip
        """Train the model for one iteration, on images of each of ``generators``. Returns it, and the mean loss."""
        module, drawn = cached_generator(self.generator, server.task).to(server.device, server.dtype), dict[str, Tensor]()
        for prefix, tensors in generators.items():
            y, noise = draw(f"{prefix}student", self.student_steps)
            with torch.no_grad():  # generators and teachers are constant here
                images = [FunctionalModel(module).at(tensors)(*inputs) for inputs in zip(noise, y)]
                logits = [combine_logits(ensemble_logits(teachers, x), weights, label) for x, label in zip(images, y)]
            drawn |= {f"{prefix}image": torch.stack(images), f"{prefix}teacher": torch.stack(logits)}
        fitted = fit(
            server.model, model, Batches(y, None, None, server.dtype, drawn), self.distillation, self.student_optimizer
        )  # fmt: skip
        keeps = self.student_statistics == "average"
        trained = self.with_statistics(server, fitted.tensors, model) if keeps else fitted.tensors
        return trained, fitted.metric_sums["loss"] / self.student_steps

    def distillation(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """The divergence from the ensemble on the generator's images, plus ``ema_weight`` times that on images of its average."""
        divergence = lambda x, teacher: kl_divergence(teacher, model(x).logits, self.temperature).mean() / self.temperature**2
        value = divergence(batch.image, batch.teacher)
        return value + self.ema_weight * divergence(batch.ema_image, batch.ema_teacher) if "ema_image" in batch.drawn else value, {}


def moving_average(average: Tensors | None, tensors: Tensors, decay: float, *, corrected: bool) -> Tensors:
    """``decay * average + (1 - decay) * tensors``. Integers, such as counts of batches, are those of ``tensors``.

    Args:
        average: the average so far; None in the first round.
        tensors: the tensors of this round.
        decay: in [0, 1).
        corrected: the first average is ``tensors``; if false, ``(1 - decay) * tensors``.
    """
    if average is None and corrected:
        return dict(tensors)
    floats = {key: (1 - decay) * value for key, value in tensors.items() if value.is_floating_point()}
    return {**tensors, **{key: value if average is None else decay * average[key] + value for key, value in floats.items()}}
