"""Co-Boosting: harder images, better weights of the ensemble, and the student improve each other on the server, without data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd.distillation.image_synthesis import Synthesis, ensemble_logits
from fedkd.distillation.logit_distillation import cosine_schedule
from fedkd.errors import require
from fedkd.federation.aggregation import AGGREGATION_PARTS
from fedkd.federation.server import Server
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.losses.kl import kl_divergence
from fedkd.models.ensemble import Member, combine_logits
from fedkd.seed import Seed
from fedkd.server_distillation import ServerDistillation
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel
from fedkd.training.loop import fit
from fedkd.training.optimizers import OptimizerFactory, clip_gradients
from fedkd.types import Input, Metrics, State, Tensors, Update, parts_of


@dataclass(kw_only=True)
class CoBoosting(ServerDistillation):
    """Client: ``CE(z, y)``.

    Ensemble: ``z_E = sum_k a_k z_k(x) / sum_k a_k``, with a_k = 1 / K at the beginning of a round.

    Generator: ``bn L_bn / K + oh mean((1 - p)^hardness CE(z_E, y)) + adv L_adv``.

    Weights: ``a <- clip(a - mu mu_decay^e sign(d CE(z_E, y) / da), 0, 1)``, for each batch of the pool.

    Images: ``x <- x + perturbation sign(d <u, softmax(z_E / T)> / dx)``, with u uniform in -1..1, for each step of the student.

    Server: ``T^2 KL(softmax(z_E / T) || softmax(z_w / T))``, one pass over the pool.

    z_E are the logits of the weighted ensemble, z_w those of the student, and p the ensemble's probability of the label, without gradient.
    ``L_adv = -mean(m T_a^2 KL(softmax(z_E / T_a) || softmax(z_w / T_a)))`` counts the images m of ``adversarial``, and L_bn is DENSE's.

    Each of the epochs e = 0, 1, ... trains a new generator with its noise and adds one batch of images to the pool. Before it is added,
    from the second epoch on, one pass over the pool moves the weights. Then the student makes its pass. One shot is ``rounds=1`` with all
    clients and many local epochs. With more rounds the next round starts from the student. epochs = 0 with ``student=average`` is FedAvg.
    Clients may have different networks, as in DENSE.

    Source:
        Dai, Zhang, Li, Liu, Yang, Han: Enhancing one-shot federated learning through data and ensemble co-boosting, ICLR 2024.
        Public code: rong-dai/Co-Boosting @ b95d715. ``experiment=coboosting_public_code`` has its values.

    Args:
        generator: ``task -> module(noise, y)`` that makes images.
        generator_optimizer: ``parameters -> optimizer`` of generator and noise.
        generator_steps: Steps for each batch of images, > 0.
        epochs: Batches of images, and passes over the pool, per round, >= 0.
        batch_size: Images per epoch and per step, > 1.
        bn: Weight of the distance to the teachers' BatchNorm statistics, >= 0.
        oh: Weight of the cross-entropy with the drawn labels, >= 0.
        adv: Weight of the divergence of ensemble and student, >= 0.
        hardness: Exponent of the factor of hard images in the cross-entropy, >= 0. 0 is no factor.
        adversarial: Images whose divergence counts: ``all``, those of ``disagreement`` as in DENSE, or those on which only the ensemble is
            right (``ensemble_right``).
        adversarial_temperature: Temperature T_a of this divergence, > 0.
        keep: Images of a generator that are kept: those of the step with the least loss (``best``), or of the ``last`` step.
        mu: Step of the weights, >= 0. 0 keeps them equal.
        mu_decay: Factor of this step per epoch, in (0, 1].
        perturbation: Change of each pixel in the direction that the ensemble is unsure of, in units of normalized images, >= 0.
        temperature: Temperature T of the distillation, > 0.
        student_optimizer: ``parameters -> optimizer`` of the student. Its learning rate follows a cosine over the epochs of a round.
        max_gradient_norm: Largest norm of the gradients of generator and student, > 0. Longer ones are scaled down.
        student: Start from the ``average`` of the clients' models, or ``fresh``.
        student_statistics: BatchNorm statistics of the student: of the ``images`` on which it trains, or the ``average`` of the clients',
            which is kept. ``average`` needs a student that starts from the average.

    Deviations:
        - From the public code: the student starts from the clients' mean as shipped, and the shipped epochs and steps are fewer.
        - From the public code: images of the pool keep their values. There they are stored as files with 8 bits per pixel.
        - From the public code: images of the pool are not cropped and flipped at random.
        - From the public code: the gradient's norm is that of generator and noise together. There it is that of the generator.
        - From the public code: it reports the best epoch on the test set. fedkd does not.
        - The weights never become 0 all at once: such a step is left out.
        - The pool of images and the weights begin anew in each round.
        - BatchNorm statistics must be averaged, because the teachers need them.
    """

    inputs: ClassVar[tuple[Input, ...]] = ("image",)
    server_summary: ClassVar[str] = "mean of models, then distillation of the weighted ensemble on hard generated images"

    generator: Callable[..., nn.Module]
    generator_optimizer: OptimizerFactory
    generator_steps: int
    epochs: int
    batch_size: int
    bn: float
    oh: float
    adv: float
    hardness: float
    adversarial: Literal["all", "disagreement", "ensemble_right"]
    adversarial_temperature: float
    keep: Literal["last", "best"]
    mu: float
    mu_decay: float
    perturbation: float
    temperature: float
    student_optimizer: OptimizerFactory
    max_gradient_norm: float
    student: Literal["average", "fresh"]
    student_statistics: Literal["images", "average"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "bn", "oh", "adv", "hardness", "mu", "perturbation"):
            require(getattr(self, name) >= 0, name, "must be >= 0 (0 switches it off)", getattr(self, name))
        for name, least in (
            ("generator_steps", 0), ("batch_size", 1), ("adversarial_temperature", 0), ("temperature", 0), ("max_gradient_norm", 0),
        ):  # fmt: skip
            require(getattr(self, name) > least, name, f"must be > {least}", getattr(self, name))
        require(0 < self.mu_decay <= 1, "mu_decay", "must be in (0, 1] (1 keeps the step)", self.mu_decay)
        self.require_statistics_of_data(self.student_statistics, self.student)
        self.require_image_generator(self.generator)
        self.synthesis = Synthesis(
            self.generator, clip_gradients(self.generator_optimizer, self.max_gradient_norm), self.generator_steps, self.batch_size,
            self.bn, self.oh, self.adv, self.hardness, self.adversarial, self.adversarial_temperature, mean_statistics=True,
            sorted_labels=False, keep=self.keep,
        )  # fmt: skip

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the models, then distill their ensemble into the student. The round's models and weights are kept for evaluation."""
        after, metrics = super().aggregate(server, parts_of(state, "model", *AGGREGATION_PARTS), updates, server_round)
        begin = after["model"] if self.student == "average" else server.initial
        teachers = self.teachers(server, updates)
        student, weights, pool, more = self.distill(server, begin, teachers)
        names = [f"member-{u.client}" for u in updates]
        members = dict(zip(names, (one.tensors for one in teachers)))
        made = {} if pool is None else {"made": {"images": pool.images[-self.batch_size :], "y": pool.y[-self.batch_size :]}}
        kept = {**made, **members, "ensemble": dict(zip(names, weights))}
        return {**after, "model": student, "average": after["model"], **kept}, {**metrics, **more}

    def server_steps(self, server: Server, updates: Sequence[Update], server_round: int) -> int:
        """All steps of generators and student."""
        return self.epochs * self.generator_steps + self.epochs * (self.epochs + 1) // 2

    def distill(self, server: Server, student: Tensors, teachers: Sequence[Member]) -> tuple[Tensors, Tensor, "Pool | None", Metrics]:
        """All epochs of one round.

        Returns the student, the weights of the teachers [K], which sum to 1, the pool, and the mean of every metric.
        """
        weights, optimizer = torch.full((len(teachers),), 1 / len(teachers), dtype=server.dtype, device=server.device), None
        pool: Pool | None = None
        means: Metrics = {}
        for epoch, factor in enumerate(cosine_schedule(self.epochs)):
            seed = server.seed / "epoch" / epoch
            x, terms = self.synthesis(teachers, Member(server.model, student), server.task, seed, weights / weights.sum())
            weights = weights if pool is None else self.boost_weights(weights, pool, epoch, seed)
            new = Pool(x, self.synthesis.labels(server.task, seed).to(x.device), ensemble_logits(teachers, x).detach())
            pool = new if pool is None else pool.joined(new)
            batches = self.batches_of(pool, teachers, weights / weights.sum(), seed, server.dtype)
            fitted = fit(
                server.model, student, batches, self.distillation, clip_gradients(self.student_optimizer, self.max_gradient_norm),
                optimizer_state=optimizer, schedule=[factor] * len(batches),
            )  # fmt: skip
            keeps = self.student_statistics == "average"
            student, optimizer = self.with_statistics(server, fitted.tensors, student) if keeps else fitted.tensors, fitted.optimizer
            terms = {
                **{f"synthesis_{name}": value for name, value in terms.items()},
                "distillation_loss": fitted.metric_sums["loss"] / len(batches),
            }
            means = {name: means.get(name, 0) + value / self.epochs for name, value in terms.items()}
        weights = weights / weights.sum()
        return student, weights, pool, {**means, **({"largest_ensemble_weight": weights.max()} if self.epochs else {})}

    def boost_weights(self, weights: Tensor, pool: "Pool", epoch: int, seed: Seed) -> Tensor:  # [K] -> [K]
        """The weights after one pass over the pool in random order."""
        order = torch.randperm(len(pool), generator=(seed / "weights").torch()).to(weights.device)
        for index in order.split(self.batch_size) if self.mu else ():
            weights = move_weights(weights, pool.logits[:, index], pool.y[index], self.mu * self.mu_decay**epoch)
        return weights

    def batches_of(self, pool: "Pool", teachers: Sequence[Member], weights: Tensor, seed: Seed, dtype: torch.dtype) -> Batches:
        """The batches [S, B] of one pass over the pool in random order, with moved images and the ensemble's logits for these."""
        order = torch.randperm(len(pool), generator=(seed / "order").torch()).view(-1, self.batch_size).to(pool.y.device)
        if not self.perturbation:
            logits = combine_logits(pool.logits, weights)
            return Batches(pool.y[order], None, None, dtype, {"image": pool.images[order], "teacher": logits[order]})
        shape = (*order.shape, pool.logits.shape[-1])
        directions = torch.rand(shape, generator=(seed / "directions").torch(), dtype=torch.float64).to(pool.images) * 2 - 1
        moved = [
            perturb_images(pool.images[index], direction, teachers, weights, self.temperature, self.perturbation)
            for index, direction in zip(order, directions)
        ]
        logits = torch.stack([combine_logits(ensemble_logits(teachers, x), weights) for x in moved])
        return Batches(pool.y[order], None, None, dtype, {"image": torch.stack(moved), "teacher": logits})

    def distillation(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """``T^2 KL(softmax(z_E / T) || softmax(z_w / T))``, mean over the batch."""
        return kl_divergence(batch.teacher, model(batch.image).logits, self.temperature).mean(), {}


@dataclass(frozen=True)
class Pool:
    """All images of a round so far.

    Args:
        images: normalized images [N, channels, height, width].
        y: their labels [N].
        logits: the teachers' logits [K, N, C].
    """

    images: Tensor
    y: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def joined(self, other: "Pool") -> "Pool":
        """This pool and the images of another one after them."""
        return Pool(torch.cat([self.images, other.images]), torch.cat([self.y, other.y]), torch.cat([self.logits, other.logits], 1))


def move_weights(weights: Tensor, logits: Tensor, y: Tensor, step: float) -> Tensor:  # [K], [K, B, C], [B] -> [K]
    """``clip(a - step sign(d CE(sum_k a_k z_k / sum_k a_k, y) / da), 0, 1)``, or a itself where all weights would become 0.

    Args:
        weights: the weights a of the teachers, in 0..1.
        logits: the teachers' logits.
        y: labels.
        step: change of each weight, > 0.
    """
    leaf = weights.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(cross_entropy(combine_logits(logits, leaf / leaf.sum()), y).mean(), leaf)
    moved = (weights - step * gradient.sign()).clamp(0, 1)
    return torch.where(moved.any(), moved, weights)


def perturb_images(
    x: Tensor, directions: Tensor, teachers: Sequence[Member], weights: Tensor, temperature: float, size: float
) -> Tensor:  # [B, channels, height, width], [B, C] -> [B, channels, height, width]
    """``x + size sign(d <directions, softmax(z_E / T)> / dx)``: diverse images near x (output diversified sampling).

    Args:
        x: normalized images.
        directions: a direction of the ensemble's probabilities for each image, in -1..1.
        teachers: the teachers.
        weights: their weights [K], which sum to 1.
        temperature: T.
        size: change of each pixel.
    """
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        probabilities = (combine_logits(ensemble_logits(teachers, leaf), weights) / temperature).softmax(-1)
        (gradient,) = torch.autograd.grad((probabilities * directions).sum(), leaf)
    return x + size * gradient.sign()
